"""Feast's own universal tests of stores, run on ours: `docs/feast-tests.md` tells how."""
