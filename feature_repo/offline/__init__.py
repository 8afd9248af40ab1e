"""History: what the offline store keeps as immutable parquet parts, and how it is read, joined and compacted."""
