"""The dashboard, rules and alerts name only what the code tells, and each alert has its run-book."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from encoders.metrics import RetinaMetrics
from materializer.metrics import WorkerMetrics
from serving.metrics import Metrics, PartsCollector

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "observability"
OF_PROMETHEUS = {"up", "le", "job", "instance"}
OURS = re.compile(r"\b(?:embark|kfc)[_:][a-z0-9_:]+")
GROUPED = re.compile(r"\b(?:by|on|group_left)\s*\(([^)]*)\)")
MATCHED = re.compile(r"([a-z_]+)\s*(?:=~|!=|=)\s*\"")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


@pytest.fixture(scope="module")
def told() -> tuple[set[str], set[str]]:
    """Names of series and of labels that the code has."""
    registry = CollectorRegistry()
    WorkerMetrics(registry), RetinaMetrics(registry)
    metrics = Metrics(registry)
    metrics.called("Lookup", "OK", 0.001)
    metrics.answered("text_lstm__v1", np.ones(1, dtype=np.uint8))
    parts = MagicMock()
    parts.all = {"text_lstm__v1": MagicMock(evicted=0, counts=MagicMock(hits=0, misses=0, filled=0, refused=0))}
    parts.all["text_lstm__v1"].__len__.return_value = 0
    zeros = MagicMock(waiting=0, refused=0, published=0, dropped=0, inside=0, breaker=MagicMock(is_open=False))
    registry.register(PartsCollector(parts, zeros, zeros, zeros))
    families = list(registry.collect())
    names = {f"{each.name}{suffix}" for each in families for suffix in SUFFIXES[each.type]}
    labels = {label for each in registry._collector_to_names for label in getattr(each, "_labelnames", ())}
    samples = [sample for each in families for sample in each.samples]
    return names, labels | {label for sample in samples for label in sample.labels}


def rules() -> Iterator[dict[str, object]]:
    for file in ("rules.yml", "alerts.yml"):
        for group in yaml.safe_load((FOLDER / file).read_text())["groups"]:
            yield from group["rules"]


def expressions() -> list[str]:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    return [str(rule["expr"]) for rule in rules()] + [t["expr"] for panel in panels for t in panel.get("targets", [])]


def test_every_metric_and_label_that_is_asked_for_is_told_by_the_code(told: tuple[set[str], set[str]]) -> None:
    names, labels = told
    recorded = {str(rule["record"]) for rule in rules() if "record" in rule}
    assert len(expressions()) > 40
    for expression in expressions():
        assert set(OURS.findall(expression)) <= names | recorded | {"embark"}, expression
        asked = {label.strip() for group in GROUPED.findall(expression) for label in group.split(",") if label.strip()}
        assert asked | set(MATCHED.findall(expression)) <= labels | OF_PROMETHEUS, expression


def test_every_expression_is_one() -> None:
    for expression in expressions():
        promql_parser.parse(expression)


def test_every_alert_has_a_severity_and_a_run_book() -> None:
    headings = {
        line[3:].strip().lower() for line in (ROOT / "docs/runbooks.md").read_text().splitlines() if line[:3] == "## "
    }
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 10
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook"].partition("#")  # type: ignore[index]
        assert (page, anchor) == ("docs/runbooks.md", str(alert["alert"]).lower())
        assert alert["labels"]["severity"] in {"page", "ticket"}  # type: ignore[index]
    assert {str(alert["alert"]).lower() for alert in alerts} == headings


def test_the_documented_metrics_of_kfc_are_those_of_the_code(told: tuple[set[str], set[str]]) -> None:
    documented = set(re.findall(r"^\| `(kfc_[a-z_]+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    assert documented
    bare = {name.removesuffix("_bucket") for name in told[0]}
    assert documented <= bare
