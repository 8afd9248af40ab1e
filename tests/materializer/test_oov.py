"""Setting a view's OOV embedding: what is refused, what is written where, and what comes after what."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY, embedding_id, oov_zeros
from feature_repo.online_rows import served_oov
from materializer.archive import EmbeddedBatch
from materializer.oov import OovRefused, checked, set_oov
from serving.memory import MemoryRows
from tests.materializer.fakes import START, FakeClock

SPEC = EncoderSpec(name="tiny", version="v1", modality="text", dim=3, network="text_lstm", pinned="seeded:0")
ONES = np.ones(3, dtype=np.float32)


@dataclass
class Stores:
    """An archive whose online rows are in memory; `written` in order."""

    rows: MemoryRows = field(default_factory=MemoryRows)
    written: list[tuple[str, EmbeddedBatch]] = field(default_factory=list)

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        self.written.append(("history", batch))

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        self.written.append(("online", batch))
        (key,) = batch.keys
        self.rows.rows[spec.view, key] = (int(batch.event_time[0]), batch.embedding_id[0], batch.vectors[0])


def test_an_oov_embedding_is_a_row_in_history_and_then_online() -> None:
    stores, clock = Stores(), FakeClock()
    stands, new = set_oov(SPEC, ONES, stores, stores.rows, clock)
    assert new
    assert [where for where, _ in stores.written] == ["history", "online"]
    assert stores.written[0][1] is stores.written[1][1]
    assert (stands.event_time, stands.embedding_id) == (START, embedding_id(SPEC.view, OOV_KEY, START, ONES))
    assert served_oov(stores.rows, SPEC).embedding_id == stands.embedding_id


def test_a_later_one_wins_also_where_the_clock_is_behind_and_the_same_one_is_not_written_again() -> None:
    stores, clock = Stores(), FakeClock()
    first, _ = set_oov(SPEC, ONES, stores, stores.rows, clock)
    clock.seconds = -60.0
    second, new = set_oov(SPEC, 2 * ONES, stores, stores.rows, clock)
    assert (new, second.event_time) == (True, first.event_time + 1)
    again, new = set_oov(SPEC, 2 * ONES, stores, stores.rows, clock)
    assert (new, again.embedding_id) == (False, second.embedding_id)
    assert len(stores.written) == 4


def test_zeros_that_nobody_has_set_are_not_written() -> None:
    stores = Stores()
    stands, new = set_oov(SPEC, np.zeros(3, dtype=np.float32), stores, stores.rows, FakeClock())
    assert (new, stands.embedding_id, stores.written) == (False, oov_zeros(SPEC.view, 3).embedding_id, [])


@pytest.mark.parametrize("array", [ONES, ONES[None], ONES.astype(np.float16), ONES.astype(np.float64)])
def test_floats_of_the_views_length_are_taken(array: NDArray[np.floating]) -> None:
    assert checked(SPEC, array).tobytes() == ONES.tobytes()


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones(3, dtype=np.int64), r"it holds int64, embeddings hold float32"),
        (np.ones(4), r"it has the shape \(4,\), an embedding of tiny__v1 has \(3,\)"),
        (np.ones((3, 1)), r"it has the shape \(3, 1\)"),
        (np.array([1, np.nan, 2]), r"1 of its 3 numbers are not finite as float32, at 1 for one"),
        (np.array([1, 2, 1e300]), r"at 2 for one"),
    ],
)
def test_what_cannot_be_an_embedding_is_refused(array: NDArray[np.generic], said: str) -> None:
    with pytest.raises(OovRefused, match=said):
        checked(SPEC, array)
