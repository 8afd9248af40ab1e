"""The demo's report: one HTML file with nothing outside it."""

import base64
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from embark.demo_result import DemoResult, ItemShown

TEMPLATES = Path(__file__).with_name("templates")


def write_report(path: Path, result: DemoResult, pictures: Mapping[str, bytes]) -> None:
    """Writes the report of a demo.

    Args:
        path: of the HTML file.
        result: what the demo saw.
        pictures: name of a photograph, as in `…/<name>.jpg`, → its JPEG.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    titles = {item.key: item.title for item in result.items}
    uris = _pictures(result.items, pictures)
    page = environment.get_template("report.html.j2").render(
        result=result,
        pictures=uris,
        numbers={key: f"p{i}" for i, key in enumerate(uris, 1)},  # each picture stands in the file once
        titles=titles,
        views=list(dict.fromkeys(item.view for item in result.items)),
        by_title=_by_title(result.items),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _pictures(items: list[ItemShown], pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Key → picture as a data URI, for keys that are URLs of known pictures."""
    uris = {name: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() for name, jpeg in pictures.items()}
    names = {item.key: item.key.rpartition("/")[2].removesuffix(".jpg") for item in items}
    return {key: uris[name] for key, name in names.items() if name in uris and key.startswith("http")}


def _by_title(items: list[ItemShown]) -> list[tuple[str, list[ItemShown]]]:
    """Items that show the same thing, together."""
    groups: dict[str, list[ItemShown]] = {}
    for item in items:
        groups.setdefault(item.title, []).append(item)
    return list(groups.items())
