"""The Feast repo: encoders declared in `catalog.py` become feature views, and what every component reads from them."""

from feature_repo.torch_on_demand import defer_torch

defer_torch()
