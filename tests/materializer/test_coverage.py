"""How much of a view's keys another view has."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.spec import EncoderSpec
from feature_repo.failures import MemoryFailureMarks
from materializer import coverage
from materializer.archive import ArchiveUnavailable
from materializer.backfill_input import InputError, Row
from materializer.coverage import Coverage, CoverageMeter, CoverageUnknown, traffic

IMAGE = EncoderSpec(
    name="pic", version="v1", modality="image", dim=4, network="torchvision:x", weights="seeded:0", pinned="seeded:0"
)
SIGNED = replace(IMAGE, version="v2", drop_query_params=("sig",))


class Shelf:
    """An archive with some keys, that notes what it is asked for."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.asked: list[str] = []
        self.away = False

    def archived(self, spec: EncoderSpec, keys: Sequence[str]) -> set[str]:
        if self.away:
            raise ArchiveUnavailable("Cassandra is away")
        self.asked += keys
        return self.keys & set(keys)


def url(name: object) -> str:
    return f"http://a.example/{name}"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(coverage, "CHUNK", 3)
    pq.write_table(pa.table({"key": [url(n) for n in range(8)]}), tmp_path / "keys.parquet")
    return tmp_path / "keys.parquet"


def test_each_key_counts_the_same_without_traffic_and_a_found_one_is_not_asked_for_again(keys: Path) -> None:
    shelf, seen = Shelf(), list[int]()
    meter = CoverageMeter(keys, IMAGE, shelf, MemoryFailureMarks({}))
    shelf.keys = {url(0), url(3), url(7), url("another")}
    found = meter.measure(seen.append)
    assert found == Coverage(keys=8, covered=3, failed=0, weight=8, covered_weight=3, failed_weight=0)
    assert seen == [3, 6, 8]
    shelf.asked.clear()
    shelf.keys |= {url(1)}
    assert meter.measure().share == 0.5
    assert shelf.asked == [url(n) for n in (1, 2, 4, 5, 6)]


def test_what_is_looked_up_often_counts_more_and_what_is_not_does_not_count(keys: Path) -> None:
    shelf = Shelf()
    shelf.keys = {url(0), url(1)}
    meter = CoverageMeter(
        keys, IMAGE, shelf, MemoryFailureMarks({}), {url(0): 97, url(2): 3, url("never archived"): 1000}
    )
    assert meter.measure() == Coverage(keys=8, covered=2, failed=0, weight=100, covered_weight=97, failed_weight=0)
    assert meter.measure().share == 0.97


def test_keys_are_canonical_in_the_new_view(tmp_path: Path) -> None:
    signed = [f"{url('a')}?sig=1", f"{url('a')}?sig=2", "no url"]
    pq.write_table(pa.table({"key": signed}), tmp_path / "keys.parquet")
    shelf = Shelf()
    shelf.keys = {url("a")}
    found = CoverageMeter(tmp_path / "keys.parquet", SIGNED, shelf, MemoryFailureMarks({})).measure()
    assert (found.keys, found.covered, found.failed) == (3, 2, 1)


def test_what_failed_will_not_come_until_its_mark_is_gone(keys: Path) -> None:
    shelf, marks = Shelf(), MemoryFailureMarks({})
    shelf.keys = {url(0)}
    marks.mark(IMAGE.view, {url(0): "old", url(1): "NotFound: 404", url(7): "NotFound: 404"})
    meter = CoverageMeter(keys, IMAGE, shelf, marks)
    found = meter.measure()
    assert (found.covered, found.failed, found.reachable) == (1, 2, 0.75)
    marks.clear(IMAGE.view, [url(1), url(7)])
    assert meter.measure().reachable == 1.0


def test_traffic_is_counted_by_canonical_keys(keys: Path) -> None:
    rows = [
        Row(number=1, position=1, key="HTTP://A.example/1"),
        None,
        Row(number=2, position=2, key=url(1)),
        Row(number=3, position=3, key="no url"),
        Row(number=4, position=4, problem="the key is null"),
    ]
    assert traffic(rows, IMAGE) == {url(1): 2}
    with pytest.raises(InputError, match="no key that pic__v1 could have"):
        traffic(rows[3:], IMAGE)


def test_coverage_of_nothing_is_whole_and_of_other_peoples_traffic_unknown(tmp_path: Path, keys: Path) -> None:
    pq.write_table(pa.table({"key": pa.array([], pa.string())}), tmp_path / "none.parquet")
    assert CoverageMeter(tmp_path / "none.parquet", IMAGE, Shelf(), MemoryFailureMarks({})).measure().share == 1.0
    with pytest.raises(CoverageUnknown, match="none of the look-ups"):
        CoverageMeter(keys, IMAGE, Shelf(), MemoryFailureMarks({}), {url("other"): 1})


def test_an_outage_is_told(keys: Path) -> None:
    shelf = Shelf()
    shelf.away = True
    with pytest.raises(CoverageUnknown, match="Cassandra is away"):
        CoverageMeter(keys, IMAGE, shelf, MemoryFailureMarks({})).measure()
