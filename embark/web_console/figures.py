"""The charts of the page: what is drawn, and the same as a table for who does not see them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from embark.web_console.trail import Moment, Window
from embark.web_console.vitals import EMBARK, EMBEDDED, KFC, RETINA, TOPICS, gauge, lookup_seconds
from feature_repo.embeddings import Status

POINT_SECONDS = 10.0  # of a point: five times that the parts are asked

Point = tuple[Mapping[str, Window], Moment]  # the counts of each part, and the last moment of the point


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        values: one a point; None where nothing is known.
        colour: name of a colour of the style sheet.
        dash: plotly's: lines differ in more than colour.
    """

    name: str
    values: Sequence[float | None]
    colour: str
    dash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart.

    Attributes:
        name: in the page's addresses.
        unit: of the values.
        times: of the points, seconds since 1970.
    """

    name: str
    title: str
    unit: str
    times: Sequence[float]
    lines: Sequence[Line]

    @property
    def empty(self) -> bool:
        """Whether nothing is known."""
        return all(value is None for line in self.lines for value in line.values)


STATUSES = {  # colour, dash
    Status.HIT: ("hit-fill", "solid"),
    Status.OOV: ("oov-fill", "dash"),
    Status.FAILED: ("failed-fill", "dot"),
    Status.UNAVAILABLE: ("unavailable-fill", "dashdot"),
}
WAITING = {"live": ("accent", "solid"), "bulk": ("oov-fill", "dash"), "retry": ("failed-fill", "dot")}


def charts(moments: Sequence[Moment], parts: Sequence[str]) -> list[Chart]:
    """The charts of what is kept of the parts."""
    together = groupby(moments, key=lambda moment: moment.at // POINT_SECONDS)
    points = [_point(list(some), parts) for _, some in together]
    return [
        _chart(
            points,
            "keys",
            "Keys answered",
            "keys/s",
            {
                status.name: (_rate(EMBARK, "embark_keys_total", status=status.name), *STATUSES[status])
                for status in Status
            },
        ),
        _chart(
            points,
            "latency",
            "Time of a look-up",
            "ms",
            {"p50": (_latency(0.5), "accent", "solid"), "p99": (_latency(0.99), "oov-fill", "dash")},
        ),
        _chart(
            points,
            "waiting",
            "Requests that wait for KFC",
            "requests",
            {topic: (_waiting(topic), *WAITING[topic]) for topic in TOPICS},
        ),
        _chart(
            points,
            "embedded",
            "Keys through Retina",
            "keys/s",
            {
                "embedded": (_rate(RETINA, "embark_retina_keys_total", outcome=EMBEDDED), "hit-fill", "solid"),
                "not embedded": (_not_embedded, "failed-fill", "dot"),
            },
        ),
    ]


def _point(moments: Sequence[Moment], parts: Sequence[str]) -> Point:
    return {part: Window.over(moments, part) for part in parts}, moments[-1]


def _chart(
    points: Sequence[Point],
    name: str,
    title: str,
    unit: str,
    lines: Mapping[str, tuple[Callable[[Point], float | None], str, str]],
) -> Chart:
    return Chart(
        name=name,
        title=title,
        unit=unit,
        times=[moment.at for _, moment in points],
        lines=[
            Line(name=each, values=[value(point) for point in points], colour=colour, dash=dash)
            for each, (value, colour, dash) in lines.items()
        ],
    )


def _rate(part: str, name: str, **labels: str) -> Callable[[Point], float | None]:
    return lambda point: point[0][part].rate(name, **labels)


def _latency(share: float) -> Callable[[Point], float | None]:
    def milliseconds(point: Point) -> float | None:
        seconds = lookup_seconds(point[0][EMBARK], share)
        return None if seconds is None else seconds * 1000

    return milliseconds


def _waiting(topic: str) -> Callable[[Point], float | None]:
    return lambda point: gauge(point[1], KFC, "kfc_lag_requests", topic=topic)


def _not_embedded(point: Point) -> float | None:
    retina = point[0][RETINA]
    every, embedded = (
        retina.rate("embark_retina_keys_total"),
        retina.rate("embark_retina_keys_total", outcome=EMBEDDED),
    )
    return None if every is None or embedded is None else every - embedded
