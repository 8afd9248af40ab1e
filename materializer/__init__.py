"""KFC: the Kafka consumer group that turns requests into archived embeddings. Free of torch."""

import feature_repo  # noqa: F401 - before Feast: keeps torch out of this process
