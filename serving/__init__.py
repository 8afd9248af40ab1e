"""EmbArk: the embedding archive server. Free of torch."""

import feature_repo  # noqa: F401 - before Feast: keeps torch out of this process
