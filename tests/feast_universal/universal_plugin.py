"""A pytest plugin for Feast's test run: the installed Feast is tested, each test once, and its body really runs.

It is loaded with `-p` inside Feast's test run, where `tests` is Feast's package and not ours; so it stands alone.
"""

import json
import os
import re
from pathlib import Path

# The first import settles it: the checkout, which pytest puts on the path later, has a package `feast` beside `tests`.
import feast
import pytest

EVERY_STORE = "cassandra"  # the name under which the tests run that Feast has for every store
CONFIGURATION = re.compile(r"-?ParameterSet\(.*?id=None\)-?")  # Feast's name of ours, in a test's name


def pytest_report_header() -> str:
    return f"feast: {feast.__version__} of {Path(feast.__file__).parent}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps all tests of offline stores; of online ones those for the store of our name, those for all stores once."""
    if os.environ["UNIVERSAL_KIND"] == "offline":
        return
    wanted = {item: _is_for(os.environ["UNIVERSAL_NAME"], item) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if not wanted[item]])
    items[:] = [item for item in items if wanted[item]]


def _is_for(name: str, item: pytest.Item) -> bool:
    # That fixture starts a DynamoDB of its own, whatever the store.
    if isinstance(item, pytest.Function) and "dynamodb_local_environment" in item.fixturenames:
        return False
    marker = item.get_closest_marker("universal_online_stores")
    only = marker.kwargs.get("only") if marker else None
    return name == EVERY_STORE if only is None else name in only


def pytest_collection_finish() -> None:
    """Ends the "local test": with it Feast's modules import no clients of clouds, but some tests return at once."""
    os.environ["FEAST_IS_LOCAL_TEST"] = "False"


class Outcomes:
    """Keeps what became of each test, and writes it where the runner looks for it."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = CONFIGURATION.sub("", report.nodeid.rpartition("::")[2]).removesuffix("[]")
        told = self.outcomes.setdefault(test, {"outcome": "passed", "why": ""})
        if not report.passed and told["outcome"] != "failed":  # a failed test may also fail to clean up
            told |= {"outcome": report.outcome, "why": _last_words(report)}

    def pytest_sessionfinish(self) -> None:
        Path(os.environ["UNIVERSAL_OUTCOMES"]).write_text(json.dumps(self.outcomes))


def _last_words(report: pytest.TestReport) -> str:
    if report.skipped:
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else report.longreprtext).strip().partition("\n")[0]


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes())
