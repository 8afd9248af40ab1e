"""Feast's own universal tests of online stores, run on a Cassandra of ours: `docs/feast-tests.md` tells how."""
