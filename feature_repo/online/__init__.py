"""Feature views on Cassandra: tables, rows, reads, writes and vector search behind `feature_repo.online_store`."""
