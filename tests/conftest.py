"""What all tests share."""

import os

# Before torch is imported, here and in what tests start: OpenMP's threads wait for each other by spinning, and networks
# of tests are tiny. On two busy cores the tests of training took four times as long with two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Servers of tests live for a minute: most of what Java would compile well by then, it would never run. They start in
# half the time. What users and benchmarks start is left alone.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
# Images set it. Each process that tests start would compile all of EmbArk anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import settings

import feature_repo  # noqa: F401 - before Feast, which tests import in any order
from tests.distribution import ByScope, turn

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByScope:
    return ByScope(config, log)
