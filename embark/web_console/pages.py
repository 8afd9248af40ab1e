"""The pages, made of templates: every value is escaped, since keys and reasons are strangers' texts."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from embark.html import templates
from embark.web_console.access import Access, Session
from embark.web_console.figures import Chart, Line

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
TEMPLATES = FOLDER / "templates"
NOTHING = "–"
SIGNS = {"HIT": "✓", "OOV": "○", "FAILED": "✕", "UNAVAILABLE": "!"}  # beside the word: never colour alone
TABLE_ROWS = 12


class Pages:
    """Renders templates.

    Args:
        access: signs addresses of pictures.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._environment = templates(TEMPLATES)
        self._environment.filters.update(
            rate=rate,
            percent=percent,
            ms=milliseconds,
            duration=duration,
            moment=moment,
            drawn=drawn,
            short=short,
        )
        self._environment.globals.update(
            item_url=item_url,
            identity=identity,
            picture_url=self.picture_url,
            signs=SIGNS,
            rows_of=rows_of,
        )

    def render(self, name: str, *, session: Session | None, **values: Any) -> str:
        """A page; a session's notices are told once."""
        notices = list(session.notices) if session else []
        if session:
            session.notices.clear()
        template = self._environment.get_template(f"{name}.html.j2")
        return template.render(session=session, access=self._access, notices=notices, **values)

    def picture_url(self, key: str) -> str:
        """Where the thumbnail of a key is; only this process can make such an address."""
        signed = {"key": key, "sign": self._access.signed("picture", key)}
        return "/picture?" + urlencode(signed, errors="replace")


def item_url(key: str, kind: str, **more: str) -> str:
    """The page of a key."""
    return "/item?" + urlencode({"key": key, "kind": kind, **more}, errors="replace")


def identity(*texts: str) -> str:
    """A name for an element of the page, the same for the same texts."""
    return "i" + blake2b("\0".join(texts).encode(errors="replace"), digest_size=8).hexdigest()


def rate(value: float | None) -> str:
    """Of something a second, or a count: three digits are enough."""
    if value is None or math.isnan(value):
        return NOTHING
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share; what is not all is never shown as 100 %, nor what is something as 0 %."""
    if share is None:
        return NOTHING
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def milliseconds(seconds: float | None) -> str:
    """A short time."""
    return NOTHING if seconds is None else f"{1000 * seconds:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def duration(seconds: float | None) -> str:
    """A longer time."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def moment(seconds: float) -> str:
    """A time since 1970 as people write it, in UTC."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return NOTHING


def short(text: str, length: int = 160) -> str:
    """The start of a text, and a sign where there is more."""
    return text if len(text) <= length else text[: length - 1] + "…"


def drawn(chart: Chart) -> str:
    """A chart as JSON for the script that draws it; times in milliseconds."""
    told = {
        "unit": chart.unit,
        "times": [round(at * 1000) for at in chart.times],
        "lines": [
            {
                "name": line.name,
                "values": [None if value is None else round(value, 4) for value in line.values],
                "colour": line.colour,
                "dash": line.dash,
            }
            for line in chart.lines
        ],
    }
    return json.dumps(told, separators=(",", ":"), allow_nan=False)


def rows_of(chart: Chart) -> Sequence[tuple[float, Sequence[float | None]]]:
    """The last points of a chart, newest first: time, and a value a line."""
    lines: Sequence[Line] = chart.lines
    points = [(at, [line.values[i] for line in lines]) for i, at in enumerate(chart.times)]
    return points[: -TABLE_ROWS - 1 : -1]
