"""The demo's report: one HTML file with nothing outside it."""

import base64
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from embark.demo_result import DemoResult, Impression, ItemShown, Latency
from embark.html import templates

TEMPLATES = Path(__file__).with_name("templates")
PROMISED_MS = 20.0  # p50 of an OOV answer

Seen = TypeVar("Seen", ItemShown, Impression)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A stretch of a status strip, in percent of its width."""

    status: str
    left: float
    width: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One key, with what each view answered for it."""

    key: str
    title: str
    picture: str  # CSS class; empty where there is none
    items: Sequence[ItemShown]


@dataclass(frozen=True, kw_only=True, slots=True)
class Filling:
    """How long a view took from misses to hits."""

    hits: int
    items: int
    median: float | None  # seconds
    slowest: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """A logarithmic axis of milliseconds; positions are percent of its width."""

    low: int  # exponents of ten
    high: int

    @classmethod
    def of(cls, latencies: Iterable[Latency]) -> "Scale":
        """From the power of ten below the fastest to the one above the slowest and the promise."""
        marks = [PROMISED_MS, *(ms for latency in latencies for ms in (latency.p50, latency.p99) if ms > 0)]
        return cls(low=math.floor(math.log10(min(marks))), high=math.ceil(math.log10(max(marks))))

    @property
    def ticks(self) -> list[float]:
        return [10.0**exponent for exponent in range(self.low, self.high + 1)]

    def position(self, milliseconds: float) -> float:
        exponent = math.log10(max(milliseconds, 10.0**self.low))
        return round(100 * (exponent - self.low) / (self.high - self.low), 2)


def write_report(path: Path, result: DemoResult, pictures: Mapping[str, bytes]) -> None:
    """Writes the report of a demo, whole or broken off.

    Args:
        path: of the HTML file.
        result: what the demo saw.
        pictures: name of a photograph, as in `…/<name>.jpg`, → its JPEG.
    """
    environment = templates(TEMPLATES)
    texts = {encoder.view for encoder in result.encoders if encoder.modality == "text"}
    numbered = {name: f"p{number}" for number, name in enumerate(pictures, 1)}  # CSS classes
    classes = _classes(result.items, numbered)
    failed = [item for item in result.items if "FAILED" in (item.status, item.expected)]
    settled = [item for item in result.items if item.expected != "FAILED"]
    page = environment.get_template("report.html.j2").render(
        result=result,
        # each picture stands in the file once, as a class: most are shown a dozen times
        pictures={numbered[name]: base64.b64encode(jpeg).decode() for name, jpeg in pictures.items()},
        classes=classes,
        titles={item.key: item.title for item in result.items},
        images=_cards((item for item in settled if item.view not in texts), classes),
        texts=_cards((item for item in settled if item.view in texts), classes),
        failed=failed,
        seeded=[encoder for encoder in result.encoders if not encoder.pretrained],
        filling={view: _filling(items) for view, items in _by_view(settled).items()},
        scale=Scale.of(result.latency_ms.values()),
        promised=PROMISED_MS,
        seconds=sum(step.seconds for step in result.steps),
        longest=_longest(result.items),
        segments=_segments,
        readings={view: _readings(seen) for view, seen in _by_view(result.impressions).items()},
        says=_says,
        wrong=_wrong,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _classes(items: Sequence[ItemShown], numbered: Mapping[str, str]) -> dict[str, str]:
    """Key → CSS class of its picture; a text has that of the picture with the same title."""
    names = {item.key: item.key.rpartition("/")[2].removesuffix(".jpg") for item in items if "://" in item.key}
    classes = {key: numbered[name] for key, name in names.items() if name in numbered}
    titles = {item.title: classes[item.key] for item in items if item.key in classes}
    return {item.key: titles[item.title] for item in items if item.title in titles} | classes


def _cards(items: Iterable[ItemShown], classes: Mapping[str, str]) -> list[Card]:
    by_key: dict[str, list[ItemShown]] = {}
    for item in items:
        by_key.setdefault(item.key, []).append(item)
    return [
        Card(key=key, title=of_key[0].title, picture=classes.get(key, ""), items=of_key)
        for key, of_key in by_key.items()
    ]


def _by_view(found: Iterable[Seen]) -> dict[str, list[Seen]]:
    by_view: dict[str, list[Seen]] = {}
    for one in found:
        by_view.setdefault(one.view, []).append(one)
    return by_view


def _filling(items: Sequence[ItemShown]) -> Filling:
    seconds = [item.seconds_to_hit for item in items if item.seconds_to_hit is not None]
    return Filling(
        hits=len(seconds),
        items=len(items),
        median=statistics.median(seconds) if seconds else None,
        slowest=max(seconds, default=None),
    )


def _longest(items: Iterable[ItemShown]) -> float:
    """Seconds that a status strip spans: the last change of all, and some more to show what came after it."""
    return 1.1 * max((item.timeline[-1][0] for item in items), default=1.0) or 1.0


def _segments(item: ItemShown, longest: float) -> list[Segment]:
    """The item's statuses over time; all strips have the same scale, so that they can be compared."""
    starts = [0.0, *(min(seconds / longest, 1.0) for seconds, _ in item.timeline[1:])]
    ends = [*starts[1:], 1.0]
    return [
        Segment(status=status, left=round(100 * start, 2), width=round(100 * (end - start), 2))
        for (_, status), start, end in zip(item.timeline, starts, ends, strict=True)
    ]


def _readings(impressions: Sequence[Impression]) -> dict[str, dict[str, Impression]]:
    """Key → reading → what was found."""
    by_key: dict[str, dict[str, Impression]] = {}
    for impression in impressions:
        by_key.setdefault(impression.key, {})[impression.reading] = impression
    return by_key


def _wrong(impression: Impression) -> bool:
    """Whether training would have seen something else than it should."""
    return impression.found != impression.expected or impression.equals_served is False


def _says(impression: Impression) -> str:
    if not impression.found:
        return "nothing"
    return "another vector" if impression.equals_served is False else "the served vector"
