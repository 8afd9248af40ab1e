"""KFC: the Kafka consumer group that turns requests into archived embeddings. Free of torch."""
