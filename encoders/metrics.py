"""What Retina tells Prometheus. Free of torch."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewMetrics:
    """The metrics of one view, found once: to look one up by its labels takes longer than to count."""

    waiting: Gauge
    batch_size: Histogram
    fetch_seconds: Histogram
    decode_seconds: Histogram
    compute_seconds: Histogram
    embedded: Counter
    late: Counter


class RetinaMetrics:
    """The metrics of one Retina; views are those of the registry, so there are as many series as encoders.

    Args:
        registry: where they are told; one of its own unless given.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self.keys_at_hand = Gauge(
            "embark_retina_keys_at_hand", "Keys of all calls that are not answered yet.", registry=registry
        )
        self.waiting = Gauge(
            "embark_retina_queue_length", "Prepared inputs that wait for the device.", ["view"], registry=registry
        )
        self.batch_size = Histogram(
            "embark_retina_batch_size", "Inputs of a pass.", ["view"], buckets=BATCH_SIZES, registry=registry
        )
        self.stage_seconds = Histogram(
            "embark_retina_stage_seconds",
            "What each stage takes: fetch and decode an input, compute a batch.",
            ["view", "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.keys = Counter(
            "embark_retina_keys",
            "Keys by what became of them: embedded, or an error's name.",
            ["view", "outcome"],
            registry=registry,
        )
        self.late = Counter(
            "embark_retina_late_keys",
            "Inputs that were not computed, since their deadline could not be met any more.",
            ["view"],
            registry=registry,
        )
        self.rejected = Counter(
            "embark_retina_rejected_calls", "Calls that were refused as a whole.", ["code"], registry=registry
        )
        self.encoders = Gauge("embark_retina_encoders_loaded", "Encoders in memory.", registry=registry)
        self.encoder_bytes = Gauge("embark_retina_encoder_bytes", "Bytes of their parameters.", registry=registry)
        self._views: dict[str, ViewMetrics] = {}

    def of(self, view: str) -> ViewMetrics:
        """Those of a view."""
        found = self._views.get(view)
        if found is None:
            found = self._views[view] = ViewMetrics(
                waiting=self.waiting.labels(view),
                batch_size=self.batch_size.labels(view),
                fetch_seconds=self.stage_seconds.labels(view, "fetch"),
                decode_seconds=self.stage_seconds.labels(view, "decode"),
                compute_seconds=self.stage_seconds.labels(view, "compute"),
                embedded=self.keys.labels(view, "embedded"),
                late=self.late.labels(view),
            )
        return found
