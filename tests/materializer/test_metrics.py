import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from encoders.client import Outcome, RetinaAway, RetinaBusy
from feature_repo.session import StoreUnavailable
from materializer.archive import ArchiveUnavailable
from materializer.metrics import CAUSES, Cause, WorkerMetrics
from materializer.outage import cause_of
from tests.materializer.fakes import START, told_by_kfc
from tests.materializer.test_worker import EMBEDDED, IMAGE, NOT_FOUND, TEXT, TIMEOUT, TOPICS, Kitchen

DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
REFUSED = Outcome(reason="Blocked", detail="a private address")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def kitchen(registry: CollectorRegistry) -> Kitchen:
    return Kitchen(metrics=WorkerMetrics(registry))


def told(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_a_worker_tells_what_it_archived_and_how_long_look_ups_waited(
    kitchen: Kitchen, registry: CollectorRegistry
) -> None:
    kitchen.ask("a", "b", requested_at=START - 4_000_000)
    kitchen.ask("c", topic=TOPICS.bulk, priority="bulk", requested_at=7)
    kitchen.ask("http://h/1", view=IMAGE.view, requested_at=START)
    kitchen.run()
    assert told(registry, "kfc_archived_total", view=TEXT.view) == 3
    assert told(registry, "kfc_archived_total", view=IMAGE.view) == 1
    assert told(registry, "kfc_miss_to_hit_seconds_count", view=TEXT.view) == 2  # what nobody missed does not count
    assert 8.0 <= (told(registry, "kfc_miss_to_hit_seconds_sum", view=TEXT.view) or 0) < 10.0
    assert told(registry, "kfc_batch_requests_sum") == 4
    assert told(registry, "kfc_batch_requests_count") == 2
    for stage in ("find", "embed", "append", "write", "tell"):
        assert told(registry, "kfc_stage_seconds_count", stage=stage) == 2


def test_a_worker_tells_why_requests_came_to_nothing(kitchen: Kitchen, registry: CollectorRegistry) -> None:
    kitchen.retina.outcomes = {
        "gone": [NOT_FOUND],
        "blocked": [REFUSED],
        "slow": [TIMEOUT, TIMEOUT, EMBEDDED],
        "hopeless": [TIMEOUT],
    }
    kitchen.ask("gone", "blocked", "slow", "hopeless")
    kitchen.kafka.append(TOPICS.live, b"poison")
    kitchen.run()
    assert told(registry, "kfc_retries_total", reason="Timeout") == 2 + 4
    dead = {reason: told(registry, "kfc_dead_letters_total", reason=reason) for reason in ("NotFound", "Blocked")}
    assert dead == {"NotFound": 1, "Blocked": 1}
    assert told(registry, "kfc_dead_letters_total", reason="Timeout") == 1
    assert told(registry, "kfc_dead_letters_total", reason="MalformedMessage") == 1
    assert told(registry, "kfc_archived_total", view=TEXT.view) == 1


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RetinaBusy("full"), "busy_retina"),
        (RetinaAway("gone"), "retina"),
        (StoreUnavailable("no host"), "online_store"),
        (ArchiveUnavailable("disk full", "history"), "history"),
        (ArchiveUnavailable("half a file", "registry"), "registry"),
    ],
)
def test_what_a_worker_waits_for_is_told_while_it_waits(
    kitchen: Kitchen,
    registry: CollectorRegistry,
    error: Exception,
    cause: Cause,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[dict[str, float | None]] = []

    def look() -> None:
        seen.append({each: told(registry, "kfc_stalled", on=each) for each in CAUSES})

    kitchen.retina.errors.append(error)
    kitchen.ask("a")
    kitchen.consumer.before_poll.extend([look] * 5)
    with caplog.at_level("WARNING", "materializer.outage"):
        kitchen.run()
    look()
    well = dict.fromkeys(CAUSES, 0.0)
    assert seen[0] == seen[-1] == well
    assert well | {cause: 1.0} in seen
    assert cause_of(error) == cause
    first, last = told_by_kfc(caplog)
    assert first.startswith(f"{cause}: 1 requests wait 0.5 s, then try 2: ")
    assert last == f"{cause}: at try 2 the outage is over, 1 requests go on"


def test_metrics_of_one_name_in_two_registries_are_two() -> None:
    # Feast's import has Prometheus keep values in files by name, unless that was imported before.
    code = (
        "import materializer.metrics, feast.metrics; from prometheus_client import CollectorRegistry as Registry\n"
        "one, other = Registry(), Registry()\n"
        "materializer.metrics.WorkerMetrics(one).gave_up('NotFound')\n"
        "materializer.metrics.WorkerMetrics(other).gave_up('NotFound')\n"
        "print(other.get_sample_value('kfc_dead_letters_total', {'reason': 'NotFound'}))"
    )
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith("PROMETHEUS_")
    }  # Feast's, of here
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    assert done.stdout == "1.0\n"


def test_a_worker_that_is_handed_no_metrics_leaves_none_anywhere() -> None:
    kitchen = Kitchen()
    kitchen.ask("a")
    kitchen.run()
    assert kitchen.keys == {"a"}
    assert [family.name for family in REGISTRY.collect() if family.name.startswith("kfc")] == []


def test_the_docs_list_exactly_the_metrics_that_there_are(kitchen: Kitchen, registry: CollectorRegistry) -> None:
    kitchen.retina.outcomes = {"gone": [NOT_FOUND], "slow": [TIMEOUT, EMBEDDED]}
    kitchen.ask("gone", "slow")
    kitchen.run()
    there = set()
    for family in registry.collect():
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        there.add((family.name + "_total" * (family.type == "counter"), family.type, *sorted(labels)))
    rows = re.findall(r"^\| `(kfc_\w+)` \| (\w+) \|([^|]*)\|", DOCS, re.MULTILINE)
    assert {(name, kind, *sorted(re.findall(r"\w+", labels))) for name, kind, labels in rows} == there


def test_the_docs_explain_each_cause() -> None:
    (line,) = re.findall(r"^- `on`:(.*?)\n\n", DOCS, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", line)) == {*CAUSES, "system"}
