"""The Feast repo: encoders declared in `catalog.py` become feature views, and what every component reads from them."""

# Before Feast, whose import has Prometheus keep all values in files of a temporary folder, where metrics of one name
# are one metric whatever registry they are in.
import prometheus_client  # noqa: F401

from feature_repo.feast_unchecked import leave_feast_unchecked
from feature_repo.torch_on_demand import defer_torch

defer_torch()
leave_feast_unchecked()
