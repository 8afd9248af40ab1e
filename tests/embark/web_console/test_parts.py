"""What the metrics of the parts become: growth, rates, quantiles, and a part that is away."""

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prometheus_client import CollectorRegistry

from embark.metrics import metrics_served
from embark.servers import free_port
from embark.settings import Settings
from embark.web_console import parts
from embark.web_console.figures import charts
from embark.web_console.parts import Part, PartAway, fetched, grown, parsed, reached
from embark.web_console.state import parts_of
from embark.web_console.trail import Trail, Window
from embark.web_console.vitals import vitals_of
from feature_repo.embeddings import Status
from materializer.metrics import WorkerMetrics
from serving.metrics import Metrics

EMBARK = """
# TYPE embark_keys counter
embark_keys_total{{status="HIT",view="v"}} {hits}
embark_keys_total{{status="OOV",view="v"}} {misses}
# TYPE embark_call_seconds histogram
embark_call_seconds_bucket{{code="OK",le="0.01",method="Lookup"}} {fast}
embark_call_seconds_bucket{{code="OK",le="0.1",method="Lookup"}} {all}
embark_call_seconds_bucket{{code="OK",le="+Inf",method="Lookup"}} {all}
embark_call_seconds_bucket{{code="OK",le="0.01",method="Announce"}} 900
embark_call_seconds_bucket{{code="OK",le="+Inf",method="Announce"}} 900
# TYPE embark_store_breaker_open gauge
embark_store_breaker_open 1.0
python_gc_objects_total 7
"""
KFC = """
# TYPE kfc_lag_requests gauge
kfc_lag_requests{topic="live"} 5
kfc_lag_requests{topic="bulk"} NaN
# TYPE kfc_stalled gauge
kfc_stalled{on="kafka"} 0
kfc_stalled{on="busy_retina"} 2
"""


class Told:
    """Answers what it was told to answer, and the time."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.now = 1000.0

    def fetch(self, url: str) -> str:
        text = self.texts.get(url.split("/")[2])
        if text is None:
            raise PartAway("it does not answer")
        return text

    def clock(self) -> float:
        return self.now


def embark(hits: int, misses: int, fast: int, every: int) -> str:
    return EMBARK.format(hits=hits, misses=misses, fast=fast, all=every)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def trail(told: Told) -> Trail:
    made = [
        Part("EmbArk", ["a:1", "b:1"], "EMBARK_EMBARK_METRICS", fetch=told.fetch, clock=told.clock),
        Part("KFC", ["k:1"], "EMBARK_KFC_METRICS", fetch=told.fetch, clock=told.clock),
        Part("Retina", [], "EMBARK_RETINA_METRICS", fetch=told.fetch, clock=told.clock),
    ]
    return Trail(made, clock=told.clock)


def test_rates_are_of_all_processes_together_and_survive_a_restart(told: Told, trail: Trail) -> None:
    told.texts = {"a:1": embark(100, 10, 50, 100), "b:1": embark(7, 0, 0, 0), "k:1": KFC}
    trail.look()
    told.now += 10
    told.texts["a:1"] = embark(190, 20, 50 + 80, 100 + 100)
    told.texts["b:1"] = embark(0, 0, 0, 0)  # began anew
    trail.look()
    vitals = vitals_of(trail)
    assert vitals.keys == pytest.approx(10.0)  # 90 hits and 10 misses in 10 s
    assert vitals.shares == {"HIT": 0.9, "OOV": 0.1, "FAILED": 0.0, "UNAVAILABLE": 0.0}
    assert vitals.lookup_p50 == pytest.approx(0.01 * 50 / 80)
    assert vitals.lookup_p99 == pytest.approx(0.01 + 0.09 * 19 / 20)  # announcements are no look-ups
    assert vitals.breaker_open
    assert vitals.views["v"].keys == pytest.approx(10.0)
    assert (vitals.lag, vitals.oldest, vitals.stalled) == ({"live": 5.0}, None, ["busy_retina"])


def test_a_part_that_is_away_is_told_of_and_costs_the_others_nothing(told: Told, trail: Trail) -> None:
    told.texts = {"a:1": embark(1, 0, 0, 0)}
    trail.look()
    embark_state, kfc, retina = vitals_of(trail).parts
    assert (embark_state.word, embark_state.why) == ("partly away", "b:1: it does not answer")
    assert (kfc.word, kfc.why) == ("away", "k:1: it does not answer")
    assert (retina.word, retina.why) == ("not watched", "where its metrics are is not known: set EMBARK_RETINA_METRICS")
    vitals = vitals_of(trail)
    assert (vitals.keys, vitals.lookup_p99, vitals.embedded, vitals.lag) == (None, None, None, {})


def test_nothing_is_known_before_anybody_was_asked(trail: Trail) -> None:
    vitals = vitals_of(trail)
    assert [part.word for part in vitals.parts] == ["away", "away", "not watched"]
    assert vitals.parts[0].why == "it was not asked yet"
    assert charts([], ["EmbArk", "KFC", "Retina"])[0].empty


def test_charts_have_a_point_for_ten_seconds_and_a_gap_where_a_part_was_away(told: Told, trail: Trail) -> None:
    for second, hits in enumerate([0, 20, 40, None, None, None, None, None, None, None, None, None, 100]):
        told.texts = {"k:1": KFC} | ({} if hits is None else {"a:1": embark(hits, 0, hits, hits)})
        trail.look()
        told.now += 2.0
        assert second < 20
    keys, latency, waiting, embedded = charts(trail.moments, ["EmbArk", "KFC", "Retina"])
    assert [line.name for line in keys.lines] == [status.name for status in Status]
    assert len({line.dash for line in keys.lines}) == 4  # told apart without colours
    first, second, last = keys.lines[0].values
    assert (first, second, last) == (pytest.approx(10.0), None, pytest.approx(60 / 20))
    assert latency.lines[0].values[0] == pytest.approx(5.0)  # ms: half of the first bucket
    assert waiting.lines[0].values == [5.0, 5.0, 5.0]
    assert waiting.lines[1].values == [None, None, None]
    assert embedded.empty


def test_a_counter_grows_and_begins_anew() -> None:
    assert grown(5.0, 8.0) == 3.0
    assert grown(5.0, 2.0) == 2.0


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ({"1": 0, "2": 10, "+Inf": 10}, 0.5, 1.5),
        ({"1": 10, "2": 10, "+Inf": 10}, 0.99, 0.99),
        ({"1": 0, "2": 0, "+Inf": 10}, 0.5, 2.0),  # beyond the last end: at least that
        ({"1": 0, "2": 0, "+Inf": 0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_quantiles_are_those_of_prometheus(counts: dict[str, float], share: float, expected: float | None) -> None:
    window = Window({("x_bucket", (("le", le),)): count for le, count in counts.items()}, 1.0)
    assert window.quantile(share, "x") == (None if expected is None else pytest.approx(expected))


def test_what_is_no_metrics_is_a_part_that_is_away() -> None:
    with pytest.raises(PartAway, match="tells no metrics"):
        parsed("<html>not found</html>")
    assert parsed("") == {}
    assert math.isnan(parsed('kfc_lag_requests{topic="a"} NaN')["kfc_lag_requests", (("topic", "a"),)])


def test_real_metrics_are_read_over_http() -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry).archived("v", 3, [0.2])
    Metrics(registry).called("Lookup", "OK", 0.004)
    address = f"127.0.0.1:{free_port()}"
    with metrics_served(address, registry, healthy=lambda: False):
        reading = parsed(fetched(f"http://{reached(address.replace('127.0.0.1', '0.0.0.0'))}/metrics"))
        assert reading["kfc_archived_total", (("view", "v"),)] == 3.0
        assert ("embark_call_seconds_bucket", (("code", "OK"), ("le", "0.005"), ("method", "Lookup"))) in reading
        with pytest.raises(PartAway, match="answers 503"):
            fetched(f"http://{address}/health")
    with pytest.raises(PartAway, match="does not answer"):
        fetched(f"http://{address}/metrics")


@pytest.fixture
def talkative() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"#" * 100_000 + b"\n")
            except OSError:
                pass  # it has heard enough

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
        server.shutdown()


def test_a_part_that_talks_without_end_is_away(talkative: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_BYTES", 1 << 20)
    with pytest.raises(PartAway, match="more than 1 MB"):
        fetched(talkative)


def test_settings_say_where_all_processes_tell_their_metrics() -> None:
    settings = Settings(embark_metrics="h:10, i:20", processes=2, kfc_metrics="k:1")
    assert [part.addresses for part in parts_of(settings)] == [("h:10", "h:11", "i:20", "i:21"), ("k:1",), ()]
