"""What all tests share."""

import pytest
from hypothesis import settings

import feature_repo  # noqa: F401 - before Feast, which tests import in any order

# A busy machine is no failure: nothing here is timed.
settings.register_profile("untimed", deadline=None, print_blob=True)
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-seed",
        type=int,
        action="append",
        metavar="SEED",
        help="what `-m chaos` plants, kills and when follows from it; may be given several times (default: 1)",
    )
