"""The Feast repo: encoders declared in `catalog.py` become feature views, and what every component reads from them."""

# Before Feast, one of whose modules sets an environment variable that turns every metric of a process which imports
# prometheus_client later into a file that all registries share.
import prometheus_client  # noqa: F401

from feature_repo.torch_on_demand import defer_torch

defer_torch()
