"""The report of a made-up demo, read back as a browser reads it; and the figures as JSON."""

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from embark.demo_result import DemoResult, EncoderShown, Impression, ItemShown, Latency, Step
from embark.report import Scale, write_report

IMAGES, TEXTS = "mobilenet_v3_small__v1", "text_lstm__v1"
CAT, MOON = "http://127.0.0.1:1/photographs/cat.jpg", "http://127.0.0.1:1/photographs/moon.jpg"
GONE = "http://127.0.0.1:1/missing/gone.jpg"
HOSTILE = "<script>alert('moon')</script>"
VOID = {"meta", "br", "line", "circle", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, words and attributes of a page; whether every element was closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(out, "JPEG")
    return out.getvalue()


PICTURES = {"cat": picture("orange"), "moon": picture("grey")}


def item(view: str, key: str, title: str, status: str = "HIT", failure: str | None = None) -> ItemShown:
    return ItemShown(
        view=view,
        key=key,
        title=title,
        expected="FAILED" if failure else "HIT",
        timeline=[(0.003, "OOV"), (2.25, status)] if status != "OOV" else [(0.003, "OOV")],
        seconds_to_hit=2.25 if status == "HIT" else None,
        failure=failure,
    )


def encoder(view: str, modality: str, weights: str = "seeded:0") -> EncoderShown:
    return EncoderShown(
        view=view,
        modality=modality,
        dim=576,
        network="torchvision:mobilenet_v3_small",
        weights=weights,
        pretrained=not weights.startswith("seeded"),
        fingerprint="0f3a9c1d22ab87e4",
        registered_while_running=False,
    )


def impression(key: str, reading: str, *, expected: bool, found: bool, equal: bool | None) -> Impression:
    return Impression(
        view=IMAGES,
        key=key,
        at="2026-01-02T03:04:05.678901+00:00",
        reading=reading,
        expected=expected,
        found=found,
        equals_served=equal,
    )


@pytest.fixture
def sample() -> DemoResult:
    return DemoResult(
        steps=[Step(name="Start the servers", held=True, seconds=3.2, detail="kafka 4.1.0, cassandra 5.0.5")],
        servers={"kafka": "4.1.0", "cassandra": "5.0.5"},
        versions={"python": "3.11.9", "feast": "0.67.0"},
        encoders=[encoder(IMAGES, "image"), encoder(TEXTS, "text")],
        latency_ms={"oov": Latency.of([1.0, 2.0, 30.0]), "hit": Latency.of([0.5, 0.6])},
        items=[
            item(IMAGES, CAT, "A ginger cat"),
            item(IMAGES, MOON, HOSTILE),
            item(IMAGES, GONE, "A picture that is gone", "FAILED", "NotFound: the server answered 404"),
            item(TEXTS, "A ginger cat", "A ginger cat"),
            item(TEXTS, HOSTILE, HOSTILE),
        ],
        history_rows={IMAGES: 2, TEXTS: 2},
        impressions=[
            impression(CAT, "before it was known", expected=False, found=False, equal=None),
            impression(CAT, "now", expected=True, found=True, equal=True),
        ],
        neighbours={IMAGES: {CAT: [(MOON, 0.931)]}, TEXTS: {"A ginger cat": [(HOSTILE, 0.412)]}},
        downloads={"/photographs/cat.jpg": 1, "/photographs/moon.jpg": 1, "/missing/gone.jpg": 7},
        notes=[f"{IMAGES} has seeded weights (seeded:0): it is NOT pretrained"],
    )


def written(path: Path, result: DemoResult) -> tuple[str, Page]:
    write_report(path / "deep" / "report.html", result, PICTURES)
    html = (path / "deep" / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_the_report_is_well_formed_and_shows_every_item(tmp_path: Path, sample: DemoResult) -> None:
    html, page = written(tmp_path, sample)
    assert html.startswith("<!doctype html>")
    assert page.open == []
    for shown in sample.items:
        assert shown.title in page.text
        assert shown.view in page.text
    for said in ("Kafka 4.1.0", "Feast 0.67.0", "Start the servers", "0f3a9c1d22ab87e4", "seeded:0", "2 of 2"):
        assert said in page.text
    for status in ("OOV at once → HIT after 2.2\xa0s", "OOV at once → FAILED after 2.2\xa0s"):
        assert " ".join(status.split()) in page.text
    assert "NotFound: the server answered 404" in page.text
    assert "0.93" in page.text
    assert "0.41" in page.text


def test_a_hostile_title_stays_text(tmp_path: Path, sample: DemoResult) -> None:
    html, page = written(tmp_path, sample)
    assert page.of("script") == []
    assert "<script" not in html
    assert HOSTILE in page.text
    assert HOSTILE in [attributes.get("aria-label") for attributes in page.of("span")]


def test_the_report_refers_to_nothing_outside_it(tmp_path: Path, sample: DemoResult) -> None:
    html, page = written(tmp_path, sample)
    for tag, attributes in page.tags:
        assert tag not in {"link", "script", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "action", "poster", "background", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert "url(" not in (attributes.get("style") or "")
    assert "@import" not in html
    assert re.findall(r"url\((?!data:image/jpeg;base64,)", html) == []
    targets = {attributes["href"] for attributes in page.of("a")}
    assert targets <= {f"#{attributes['id']}" for attributes in page.of("h2")}


def test_each_picture_stands_in_the_file_once(tmp_path: Path, sample: DemoResult) -> None:
    html, page = written(tmp_path, sample)
    assert html.count("data:image/jpeg;base64,") == len(PICTURES)
    classes = [attributes.get("class") or "" for attributes in page.of("span")]
    assert (
        sum("picture p2" in c for c in classes) == 4
    )  # card, neighbour of the cat, text, neighbour of the cat's title


def test_the_report_can_be_read_without_seeing_it(tmp_path: Path, sample: DemoResult) -> None:
    html, page = written(tmp_path, sample)
    assert page.of("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    assert len(page.of("caption")) == len(page.of("table")) > 0
    assert all(attributes.get("scope") in {"row", "col"} for attributes in page.of("th"))
    drawn = [a for tag, a in page.tags if tag == "svg" or "picture" in (a.get("class") or "").split()]
    assert all(a.get("aria-hidden") == "true" or (a.get("role") == "img" and a.get("aria-label")) for a in drawn)
    strips = [a for a in page.of("span") if a.get("class") == "strip"]
    assert len(strips) == len(sample.items)
    assert all(a.get("aria-hidden") == "true" for a in strips)  # the words beside it say the same
    assert "prefers-color-scheme: dark" in html


def test_weights_that_are_not_pretrained_are_told_aloud(tmp_path: Path, sample: DemoResult) -> None:
    _, seeded = written(tmp_path, sample)
    assert "These weights are NOT pretrained." in seeded.text
    assert sample.notes[0] in seeded.text
    learned = [encoder(IMAGES, "image", "MobileNet_V3_Small_Weights.IMAGENET1K_V1#047dcff4")]
    sample.encoders, sample.notes = learned, []
    _, pretrained = written(tmp_path, sample)
    assert "pretrained" not in pretrained.text


def test_a_demo_that_does_not_hold_says_which_step_and_what_differs(tmp_path: Path, sample: DemoResult) -> None:
    sample.steps.append(Step(name="Watch them turn into hits", held=False, seconds=180.0, detail="NotHeld: too late"))
    sample.items[0] = item(IMAGES, CAT, "A ginger cat", "OOV")
    sample.impressions[1] = replace(sample.impressions[1], equals_served=False)
    _, page = written(tmp_path, sample)
    assert "Not every step held." in page.text
    assert "Every step held." not in page.text
    assert "Watch them turn into hits: NotHeld: too late" in page.text
    assert "✗ expected HIT" in page.text
    assert "✗ another vector (expected the served vector)" in page.text


def test_what_was_to_fail_and_did_not_stands_among_the_failures(tmp_path: Path, sample: DemoResult) -> None:
    sample.items[2] = replace(sample.items[2], timeline=[(0.003, "OOV"), (1.0, "HIT")], failure=None)
    _, page = written(tmp_path, sample)
    assert "✗ expected FAILED" in page.text


def test_a_demo_that_broke_off_at_once_has_a_report(tmp_path: Path) -> None:
    result = DemoResult(steps=[Step(name="Start", held=False, seconds=0.1, detail="ServersError: port 9092 is taken")])
    write_report(tmp_path / "report.html", result, {})
    page = Page((tmp_path / "report.html").read_text())
    assert page.open == []
    assert "Start: ServersError: port 9092 is taken" in page.text


def test_a_step_without_a_result_does_not_hold() -> None:
    assert DemoResult().held is False


def test_the_figures_round_trip_through_json(sample: DemoResult) -> None:
    figures = sample.to_json()
    read = json.loads(json.dumps(figures, allow_nan=False))
    assert json.dumps(read) == json.dumps(figures)
    assert read["held"] is True
    assert read["items"][0]["timeline"] == [[0.003, "OOV"], [2.25, "HIT"]]
    assert read["neighbours"][IMAGES][CAT] == [[MOON, 0.931]]


def test_the_figures_have_the_documented_keys(sample: DemoResult) -> None:
    figures = sample.to_json()
    documented = (
        "held steps servers versions encoders latency_ms items history_rows impressions neighbours downloads notes"
    )
    assert set(figures) == set(documented.split())
    assert set(figures["steps"][0]) == {"name", "held", "seconds", "detail"}
    assert set(figures["latency_ms"]["oov"]) == {"p50", "p95", "p99", "n"}
    assert set(figures["items"][0]) == {"view", "key", "title", "expected", "timeline", "seconds_to_hit", "failure"}
    assert set(figures["impressions"][0]) == {"view", "key", "at", "reading", "expected", "found", "equals_served"}
    assert set(figures["encoders"][0]) == set(
        "view modality dim network weights pretrained fingerprint registered_while_running".split()
    )


def test_the_axis_of_latency_holds_every_mark_and_the_promise() -> None:
    scale = Scale.of([Latency(p50=0.3, p95=4.0, p99=250.0, n=9)])
    assert scale.ticks == [0.1, 1.0, 10.0, 100.0, 1000.0]
    positions = [scale.position(ms) for ms in (0.0, 0.1, 0.3, 20.0, 250.0, 1000.0)]
    assert positions == sorted(positions)
    assert (positions[0], positions[-1]) == (0.0, 100.0)
