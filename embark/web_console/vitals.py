"""The figures of now: rates, quantiles and backlogs, of what the parts told in the last minute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embark.web_console.trail import WINDOW_SECONDS, Moment, Trail, Window
from feature_repo.embeddings import Status

EMBARK, KFC, RETINA = "EmbArk", "KFC", "Retina"
LOOKUPS = ("Lookup", "LookupMany", "LookupStream")  # methods
TOPICS = ("live", "bulk", "retry")
EMBEDDED = "embedded"  # outcome of a key in Retina


@dataclass(frozen=True, kw_only=True, slots=True)
class PartState:
    """Whether a part answers.

    Attributes:
        answering, asked: of its processes.
        why: what is wrong, where not all of them answer; empty otherwise.
    """

    name: str
    answering: int
    asked: int
    why: str

    @property
    def word(self) -> str:
        """For people."""
        if not self.asked:
            return "not watched"
        if self.answering == self.asked:
            return "answers"
        return "partly away" if self.answering else "away"


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewVitals:
    """One view, now. Rates are a second, shares from 0 to 1, times in seconds; None: nothing to say.

    Attributes:
        keys: answered by EmbArk.
        shares: by status.
        hot: of the keys, those answered from memory.
        archived: embeddings by KFC.
        miss_to_hit_p50: from a look-up's miss until look-ups are answered the embedding.
    """

    keys: float | None
    shares: Mapping[str, float]
    hot: float | None
    archived: float | None
    miss_to_hit_p50: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Vitals:
    """The whole archive, now; as in `ViewVitals`.

    Attributes:
        lag: topic → requests that wait; without those that Kafka did not tell of.
        oldest: seconds for which the oldest of all has waited.
        stalled: what KFC waits for.
        embedded, not_embedded: keys a second, by Retina.
        waiting: inputs that wait for Retina's device.
    """

    parts: Sequence[PartState]
    keys: float | None
    shares: Mapping[str, float]
    lookup_p50: float | None
    lookup_p99: float | None
    breaker_open: bool
    lag: Mapping[str, float]
    oldest: float | None
    stalled: Sequence[str]
    archived: float | None
    miss_to_hit_p50: float | None
    miss_to_hit_p95: float | None
    given_up: float | None
    embedded: float | None
    not_embedded: float | None
    waiting: float | None
    views: Mapping[str, ViewVitals]


def vitals_of(trail: Trail, seconds: float = WINDOW_SECONDS) -> Vitals:
    """What the moments of the last seconds tell."""
    moments = trail.latest(seconds) if trail.moments else []
    windows = {part.name: Window.over(moments, part.name) for part in trail.parts}
    last = moments[-1] if moments else None
    embark, kfc, retina = windows[EMBARK], windows[KFC], windows[RETINA]
    lag = {topic: value for topic in TOPICS if (value := gauge(last, KFC, "kfc_lag_requests", topic=topic)) is not None}
    views = {
        view
        for window, name in ((embark, "embark_keys_total"), (kfc, "kfc_archived_total"))
        for view in window.by(name, "view")
    }
    outcomes = retina.by("embark_retina_keys_total", "outcome")
    return Vitals(
        parts=[_state(trail, last, number) for number in range(len(trail.parts))],
        keys=embark.rate("embark_keys_total"),
        shares=shares(embark.by("embark_keys_total", "status")),
        lookup_p50=lookup_seconds(embark, 0.5),
        lookup_p99=lookup_seconds(embark, 0.99),
        breaker_open=bool(gauge(last, EMBARK, "embark_store_breaker_open")),
        lag=lag,
        oldest=gauge(last, KFC, "kfc_oldest_waiting_seconds"),
        stalled=_stalled(last),
        archived=kfc.rate("kfc_archived_total"),
        miss_to_hit_p50=kfc.quantile(0.5, "kfc_miss_to_hit_seconds"),
        miss_to_hit_p95=kfc.quantile(0.95, "kfc_miss_to_hit_seconds"),
        given_up=kfc.rate("kfc_dead_letters_total"),
        embedded=retina.rate("embark_retina_keys_total", outcome=EMBEDDED),
        not_embedded=(
            sum(count for outcome, count in outcomes.items() if outcome != EMBEDDED) / retina.seconds
            if retina.seconds
            else None
        ),
        waiting=gauge(last, RETINA, "embark_retina_queue_length"),
        views={view: _view(view, embark, kfc) for view in sorted(views)},
    )


def lookup_seconds(window: Window, share: float) -> float | None:
    """A quantile of the time of look-ups in EmbArk, of all methods together."""
    counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for (name, labels), count in window.counts.items():
        told = dict(labels)
        if name == "embark_call_seconds_bucket" and told.get("method") in LOOKUPS:
            series = ("lookup_bucket", (("le", told["le"]),))
            counts[series] = counts.get(series, 0.0) + count
    return Window(counts, window.seconds).quantile(share, "lookup")


def shares(counts: Mapping[str, float]) -> dict[str, float]:
    """Each status as a share of all; empty where there were no keys."""
    total = sum(counts.values())
    return {each.name: counts.get(each.name, 0.0) / total for each in Status} if total else {}


def gauge(moment: Moment | None, part: str, name: str, **labels: str) -> float | None:
    """The largest value of a gauge at a moment; None where nobody tells it."""
    wanted = set(labels.items())
    told = moment.steps[part].gauges if moment else {}
    return max((value for (each, has), value in told.items() if each == name and wanted <= set(has)), default=None)


def _state(trail: Trail, last: Moment | None, number: int) -> PartState:
    part = trail.parts[number]
    step = last.steps[part.name] if last else None
    if not part.addresses:
        why = f"where its metrics are is not known: set {part.setting}"
    elif step is None:
        why = "it was not asked yet"
    else:
        why = "; ".join(f"{address}: {reason}" for address, reason in step.away.items())
    return PartState(name=part.name, answering=step.answered if step else 0, asked=len(part.addresses), why=why)


def _stalled(last: Moment | None) -> list[str]:
    told = last.steps[KFC].gauges if last else {}
    return sorted(dict(has)["on"] for (name, has), value in told.items() if name == "kfc_stalled" and value > 0)


def _view(view: str, embark: Window, kfc: Window) -> ViewVitals:
    hits = embark.total("embark_hot_cache_hits_total", view=view)
    misses = embark.total("embark_hot_cache_misses_total", view=view)
    return ViewVitals(
        keys=embark.rate("embark_keys_total", view=view),
        shares=shares(embark.by("embark_keys_total", "status", view=view)),
        hot=hits / (hits + misses) if hits + misses else None,
        archived=kfc.rate("kfc_archived_total", view=view),
        miss_to_hit_p50=kfc.quantile(0.5, "kfc_miss_to_hit_seconds", view=view),
    )
