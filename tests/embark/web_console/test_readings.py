"""What the console reads of the archive, as far as it needs no server."""

import asyncio
import io
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from embark.settings import Settings
from embark.thumbnail import small
from embark.web_console import encoders as counting
from embark.web_console.actions import Actions
from embark.web_console.encoders import EncoderReader
from embark.web_console.figures import Chart, Line
from embark.web_console.items import ItemReader
from embark.web_console.kept import WATCHED_SECONDS, Kept
from embark.web_console.letters import LetterBox, shown
from embark.web_console.near import CHEAP_ITEMS, KEPT_SECONDS, Nearby
from embark.web_console.newest import SHOWN, Newest
from embark.web_console.newest import Embedded as LastEmbedded
from embark.web_console.pages import drawn, duration, identity, milliseconds, moment, percent, rate, rows_of, short
from embark.web_console.thumbnails import FAILED_SECONDS, Thumbnails
from encoders.encoder import DecodeError
from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY
from feature_repo.failures import MemoryFailureMarks
from feature_repo.session import StoreUnavailable
from feature_repo.views import encoder_specs
from materializer.dead_letter_actions import NoSuchLetter
from materializer.process import KafkaUnavailable
from tests.embark.web_console.fakes import (
    ARCHIVED,
    IMAGE,
    IMAGE_VIEW,
    TEXT,
    TEXT_VIEW,
    FakeArchive,
    FakeObserved,
    FakeSource,
    png,
)
from tests.materializer.test_dead_letter_actions import letter
from tests.training.archive import IMAGE as ARCHIVED_IMAGE
from tests.training.archive import NOON, SECOND, Archived, Embedded
from tests.training.archive import TEXT as ARCHIVED_TEXT

SPECS = {IMAGE_VIEW: IMAGE, TEXT_VIEW: TEXT}


# ── newest items ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_newest_items_stand_once_each_newest_first_with_every_view_of_their_modality() -> None:
    other = replace(IMAGE, version="v2")
    cat, gone = ARCHIVED[0], "http://a.example/gone"

    def asked(_: Mapping[str, EncoderSpec]) -> Iterable[tuple[str, str, float]]:
        return [(IMAGE_VIEW, cat, 1.0), (IMAGE_VIEW, gone, 3.0), ("unregistered__v1", "x", 9.0), (TEXT_VIEW, cat, 2.0)]

    def embedded(_: Mapping[str, EncoderSpec]) -> Iterable[tuple[str, str, float]]:
        return [(other.view, cat, 5.0)]

    archive = FakeArchive()
    near = Nearby(archive, lambda view: 3)
    found = Newest(archive, [asked, embedded], near.of).read({**SPECS, other.view: other}).found
    assert [(each.modality, each.key, each.at) for each in found] == [
        ("image", cat, 5.0),
        ("image", gone, 3.0),
        ("text", cat, 2.0),
    ]
    assert [[state.view for state in each.states] for each in found] == [[IMAGE_VIEW, other.view]] * 2 + [[TEXT_VIEW]]
    assert found[0].near is not None
    assert found[0].near.view == IMAGE_VIEW
    assert found[1].near is None


def test_no_more_items_than_are_shown_are_asked_about() -> None:
    many = [(TEXT_VIEW, f"title {i}", float(i)) for i in range(5 * SHOWN)]
    found = Newest(FakeArchive(), [lambda _: many], lambda spec, state: None).read(SPECS).found
    assert [each.at for each in found] == [float(5 * SHOWN - 1 - i) for i in range(SHOWN)]


def test_what_one_source_does_not_tell_another_does() -> None:
    def away(_: Mapping[str, EncoderSpec]) -> Iterable[tuple[str, str, float]]:
        raise KafkaUnavailable("Kafka does not answer")

    newest = Newest(FakeArchive(), [away, lambda _: [(TEXT_VIEW, "a", 1.0)]], lambda spec, state: None)
    assert ([each.key for each in newest.read(SPECS).found], newest.read(SPECS).missing) == (
        ["a"],
        "Kafka does not answer",
    )
    with pytest.raises(KafkaUnavailable):
        Newest(FakeArchive(), [away], lambda spec, state: None).read(SPECS)


# ── near ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_search_is_kept_for_a_while_and_made_only_where_it_is_cheap() -> None:
    archive, now, items = FakeArchive(), [0.0], [3]
    near = Nearby(archive, lambda view: items[0], clock=lambda: now[0])
    (state,) = archive.states(IMAGE, [ARCHIVED[0]])
    for _ in range(3):
        found = near.of(IMAGE, state)
        assert found is not None
        assert [each.key for each in found.found] == [ARCHIVED[1], ARCHIVED[2]]
    assert archive.searches == 1
    now[0], items[0] = KEPT_SECONDS + 1, CHEAP_ITEMS + 1
    dear = near.of(IMAGE, state)
    assert dear is not None
    assert (dear.searched, archive.searches) == (False, 1)
    anyway = near.of(IMAGE, state, anyway=True)
    assert anyway is not None
    assert (anyway.searched, archive.searches) == (True, 2)


def test_what_went_away_between_is_told_and_not_raised() -> None:
    archive = FakeArchive()
    near = Nearby(archive, lambda view: 3)
    hit, missing = archive.states(IMAGE, [ARCHIVED[1], "http://a.example/new"])
    found = near.of(IMAGE, hit)
    assert found is not None
    assert (found.searched, found.why_not) == (False, "removed since")
    assert near.of(IMAGE, missing) is None


# ── one item ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "kind", "modality"),
    [
        ("  http://a.example/cat.jpg ", "auto", "image"),
        ("HTTPS://a.example", "auto", "image"),
        ("a red bicycle", "auto", "text"),
        ("http://a.example/cat.jpg", "text", "text"),
        ("a red bicycle", "image", "image"),
        ("a", "nonsense", "text"),
    ],
)
def test_what_was_pasted_is_taken_for_a_url_or_a_text(given: str, kind: str, modality: str) -> None:
    found = ItemReader(FakeObserved()).read(given, kind)  # type: ignore[arg-type]
    assert (found.modality, found.key, [each.spec.modality for each in found.views]) == (
        modality,
        given.strip(),
        [modality],
    )


def test_nothing_and_too_much_are_no_keys() -> None:
    reader = ItemReader(FakeObserved())  # type: ignore[arg-type]
    assert reader.read("  ", "auto").problem == "Paste a URL or a text."
    long = reader.read("x" * 40_000, "auto")
    assert (long.problem, len(long.key)) == ("A key has 8192 bytes at most.", 200)


# ── encoders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def archive(tmp_path: Path) -> Archived:
    return Archived.at(tmp_path)


def rows(*keys: str) -> list[Embedded]:
    return [Embedded(key, event=i, created=i, value=1.0) for i, key in enumerate(keys)]


def test_coverage_is_of_all_keys_that_any_view_of_the_modality_has(
    archive: Archived, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = encoder_specs(archive.store)
    archive.push(ARCHIVED_TEXT, rows("a", "b"))
    monkeypatch.setattr(counting, "ask_retina", lambda address, specs: ({}, ""))
    reader = EncoderReader(archive.store, "127.0.0.1:1")
    by_view = {each.spec.view: each for each in reader.read(specs)}
    text, image = by_view[ARCHIVED_TEXT.view], by_view[ARCHIVED_IMAGE.view]
    assert (text.items, text.known, text.coverage, image.coverage) == (2, 2, 1.0, None)
    assert text.to_json()["coverage"] == 1.0
    # counted again only where history has changed
    with monkeypatch.context() as changed:
        changed.setattr(counting, "write_newest", lambda *_: pytest.fail("history was read again"))
        assert reader.read(specs)[0].known is not None
    monkeypatch.setattr(counting, "COUNTED_ROWS", 2)
    archive.push(ARCHIVED_TEXT, rows("c"))
    (told,) = [each for each in reader.read(specs) if each.spec.view == ARCHIVED_TEXT.view]
    assert (told.items, told.coverage, told.uncounted) == (None, None, "history has 3 rows, too many to count here")


def test_two_versions_share_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = replace(ARCHIVED_TEXT, version="v2")
    archive = Archived.at(tmp_path, [ARCHIVED_TEXT, newer])
    archive.push(ARCHIVED_TEXT, rows("a", "b", "a"))
    archive.push(newer, rows("b", "c"))
    monkeypatch.setattr(counting, "ask_retina", lambda address, specs: ({}, ""))
    read = EncoderReader(archive.store, "127.0.0.1:1").read(encoder_specs(archive.store))
    assert [(each.items, each.known) for each in read] == [(2, 3), (2, 3)]


def test_what_was_embedded_last_is_read_from_the_newest_parts(archive: Archived) -> None:
    specs = encoder_specs(archive.store)
    last = LastEmbedded(archive.store)
    assert list(last(specs)) == []
    archive.push(ARCHIVED_TEXT, [*rows("a", "b"), Embedded(OOV_KEY, event=0, created=9, value=0.0)])
    archive.push(ARCHIVED_TEXT, rows("c"))
    assert {(view, key) for view, key, _ in last(specs)} == {(ARCHIVED_TEXT.view, key) for key in "abc"}
    assert max(at for _, _, at in last(specs)) == NOON / SECOND + 1


# ── dead letters ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dead_letters_are_counted_and_the_newest_shown_with_the_status_of_their_keys() -> None:
    letters = shown([letter(i, key=f"k{i}") for i in range(40)])
    assert (letters.total, len(letters.newest), letters.newest[0].key) == (40, 30, "k39")
    assert letters.counts == [("tiny__v1", "NotFound", 40)]
    told = letters.with_statuses({("tiny__v1", "k39"): "HIT"})
    assert [each.status for each in told.newest[:2]] == ["HIT", ""]


def test_a_letter_that_is_gone_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> int:
        raise NoSuchLetter("no dead letter at t:0:1")

    monkeypatch.setattr(LetterBox, "retry", gone)
    monkeypatch.setattr("embark.web_console.actions.open_store", lambda repo: None)
    actions = Actions(Settings(repo=tmp_path), lambda: MemoryFailureMarks({}))
    assert "no dead letter at t:0:1" in actions.retry({"position": "t:0:1"})


# ── readings that are kept ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_reading_that_fails_leaves_the_last_one_and_says_why() -> None:
    answers: list[object] = [1, StoreUnavailable("it is away\nat length"), 3]

    def read() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, int)
        return answer

    kept = Kept("figures", read, every=1.0, clock=lambda: 5.0)
    assert kept.read_now().value == 1
    failed = kept.read_now()
    assert (failed.value, failed.problem, failed.read_at) == (1, "it is away", 5.0)
    assert kept.read_now().problem == ""


def test_nothing_is_read_while_nobody_looks() -> None:
    now, readings, read = [0.0], [0], threading.Event()

    def count() -> int:
        readings[0] += 1
        read.set()
        return readings[0]

    with Kept("figures", count, every=0.001, clock=lambda: now[0]) as kept:
        assert not read.wait(0.1)  # nobody has asked yet
        assert kept.get(30.0).value is not None
        now[0] += WATCHED_SECONDS + 1
        kept.read_now()  # whatever is under way has ended, or ends with a value of before
        last = kept.read_now().value
        assert last is not None
        assert kept.get(30.0).value not in (None, last)  # what is old is read anew before it is shown


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"GIF89a" + b"\xff" * 50,
        png(100, 100)[:120],
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
        + (1 << 30).to_bytes(4, "big") * 2
        + b"\x08\x02\x00\x00\x00"
        + b"\0" * 40,
        b"BM" + b"\0" * 100,
    ],
)
def test_hostile_files_make_no_picture(content: bytes) -> None:
    with pytest.raises(DecodeError):
        small(content)


def test_a_picture_is_made_anew_and_small() -> None:
    jpeg = small(png(1000, 500))
    assert b"script" not in jpeg
    with Image.open(io.BytesIO(jpeg)) as made:
        assert (made.format, made.size) == ("JPEG", (240, 120))


def test_pictures_are_downloaded_once_and_failures_for_a_while() -> None:
    source, now = FakeSource(), [0.0]

    async def look() -> None:
        pictures = Thumbnails(source, clock=lambda: now[0])
        cat, gone, page = "http://a.example/cat.jpg", "http://a.example/gone", "http://a.example/page"
        together = await asyncio.gather(*(pictures.of(cat) for _ in range(5)), pictures.of(gone), pictures.of(page))
        assert [jpeg is not None for jpeg in together] == [True] * 5 + [False] * 2
        assert sorted(source.asked) == sorted([cat, gone, page])
        await pictures.of(gone)
        assert len(source.asked) == 3
        now[0] = FAILED_SECONDS + 1
        source.files[gone] = png(10, 10)
        assert await pictures.of(gone) is not None

    asyncio.run(look())


def test_pictures_take_no_more_memory_than_they_may() -> None:
    source = FakeSource()
    source.files = {str(i): png(300, 300) for i in range(6)}
    room = 3 * len(small(png(300, 300)))

    async def look() -> None:
        pictures = Thumbnails(source, kept_bytes=room)
        for i in (0, 1, 2, 0, 3, 0, 1):  # 1 made room for 3
            await pictures.of(str(i))

    asyncio.run(look())
    assert source.asked == ["0", "1", "2", "3", "1"]


# ── words and figures ────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_are_written_for_people() -> None:
    assert [rate(x) for x in (None, float("nan"), 0, 0.123, 12.34, 1234.5)] == ["–", "–", "0", "0.12", "12.3", "1,234"]
    assert [percent(x) for x in (None, 0, 0.0001, 0.5, 0.9999, 1)] == [
        "–",
        "0 %",
        "< 0.1 %",
        "50.0 %",
        "> 99.9 %",
        "100 %",
    ]
    assert [milliseconds(x) for x in (None, 0.0123, 1.5)] == ["–", "12.3 ms", "1.50 s"]
    assert [duration(x) for x in (None, 2.0, 90.0, 7200.0)] == ["–", "2.0 s", "1.5 min", "2.0 h"]
    assert (moment(0), moment(1e30)) == ("1970-01-01 00:00:00", "–")
    assert (short("abc", 3), short("abcd", 3)) == ("abc", "ab…")
    assert identity("a", "b") != identity("a\0", "b")


def test_a_chart_is_told_to_the_script_and_as_a_table() -> None:
    line = Line(name="HIT", values=[None, *map(float, range(20))], colour="hit-fill", dash="solid")
    chart = Chart(name="keys", title="Keys", unit="keys/s", times=[float(i) for i in range(21)], lines=[line])
    told = json.loads(drawn(chart))
    assert (told["times"][1], told["lines"][0]["values"][:2]) == (1000, [None, 0.0])
    assert [at for at, _ in rows_of(chart)] == [float(i) for i in range(20, 8, -1)]
    assert rows_of(chart)[0][1] == [19.0]
