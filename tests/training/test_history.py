"""Historical embeddings: against a slow reading of the rules, in memory and in files, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.embeddings import OOV_KEY, Status, oov_zeros
from tests.training.archive import IMAGE, NOON, SECOND, TEXT, Archived, Embedded, slow_reading
from training.history import Reading, historical_embeddings
from training.impressions import Impressions, ImpressionsError
from training.vectors import MatrixPlace, UnknownIds

URLS = ["http://h.example/a.jpg", "http://h.example/b.jpg", "http://h.example/c.jpg"]
SECONDS = st.integers(-6, 6)
ROWS = st.lists(
    st.builds(
        Embedded, key=st.sampled_from(URLS), event=SECONDS, created=SECONDS, value=st.sampled_from([1.0, 2.0, 3.0])
    ),
    max_size=25,
)
ASKED = st.lists(
    st.tuples(st.sampled_from([*URLS, "http://h.example/never.jpg", "no url", None]), SECONDS), max_size=15
)


def impressions_of(asked: list[tuple[str | None, int]], **columns: object) -> Impressions:
    times = pd.to_datetime([NOON + moment * SECOND for _, moment in asked], unit="us", utc=True)
    keys = pd.Series([key for key, _ in asked], dtype="string")
    return Impressions.of(pd.DataFrame({"image_url": keys, "event_timestamp": times, **columns}))


def logged(rows: list[Embedded | None]) -> pd.Series:
    oov = oov_zeros(IMAGE.view, IMAGE.dim).embedding_id
    return pd.Series([oov if row is None else row.id(IMAGE) for row in rows], dtype="Int64")


OOVS = st.lists(
    st.builds(Embedded, key=st.just(OOV_KEY), event=SECONDS, created=SECONDS, value=st.sampled_from([7.0, 8.0])),
    max_size=3,
)


@settings(max_examples=40)
@given(
    rows=ROWS,
    oovs=OOVS,
    parts=st.integers(1, 3),
    asked=ASKED,
    reading=st.sampled_from(["as_served", "as_of_content", "as_logged"]),
    batch_rows=st.integers(1, 20),
    choice=st.randoms(use_true_random=False),
)
def test_every_reading_gives_the_bytes_that_a_slow_reading_of_its_rules_gives(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Embedded],
    oovs: list[Embedded],
    parts: int,
    asked: list[tuple[str | None, int]],
    reading: Reading,
    batch_rows: int,
    choice: object,
) -> None:
    archived = Archived.at(tmp_path_factory.mktemp("readings"), [IMAGE])
    for part in range(parts):
        archived.push(IMAGE, (rows + oovs)[part::parts])
    columns = {}
    if reading == "as_logged":  # anything that a look-up may have answered
        expected = [choice.choice([*(r for r in rows if r.key == key), *oovs, None]) for key, _ in asked]  # type: ignore[attr-defined]
        columns[f"{IMAGE.view}__embedding_id"] = logged(expected)
    else:
        expected = [
            slow_reading(rows, key, moment, reading, IMAGE) or slow_reading(oovs, OOV_KEY, moment, reading, IMAGE)
            for key, moment in asked
        ]
    impressions = impressions_of(asked, **columns)
    read = historical_embeddings(archived.store, impressions, "ctr", reading, batch_rows=batch_rows)[IMAGE.view]
    oov = oov_zeros(IMAGE.view, IMAGE.dim)
    assert len(read) == len(asked)
    for i, row in enumerate(expected):
        vector, its_id = (oov.vector, oov.embedding_id) if row is None else (row.vector(IMAGE), row.id(IMAGE))
        assert read.vectors[read.rows[i]].tobytes() == vector.tobytes()
        assert read.embedding_id[read.rows[i]] == its_id
        assert read.status[i] == (Status.OOV if row is None or row.key == OOV_KEY else Status.HIT)
    assert len(np.unique(read.embedding_id)) == len(read.vectors)  # each vector once
    embedded = [(row, at) for row, (_, at) in zip(expected, asked, strict=True) if row is not None and row in rows]
    later = [row for row, moment in embedded if row.event > moment]
    assert read.fell_back == (len(later) if reading == "as_of_content" else 0)


@pytest.fixture
def archived(tmp_path: Path) -> Archived:
    """Two views: of a.jpg two embeddings and of b.jpg one, and one of a title."""
    made = Archived.at(tmp_path)
    made.push(IMAGE, [Embedded(URLS[0], 0, 2, 1.0), Embedded(URLS[1], 5, 7, 2.0)])
    made.push(IMAGE, [Embedded(URLS[0], 10, 12, 3.0)])
    made.push(TEXT, [Embedded("a cup of coffee", 0, 1, 4.0)])
    return made


def shown(count: int = 4) -> Impressions:
    asked = [(URLS[i % 2], 4 * i + 3) for i in range(count)]
    return impressions_of(asked, text=[" a cup of coffee"] * count)


def test_views_of_a_service_are_read_together_and_keys_made_canonical(archived: Archived) -> None:
    history = historical_embeddings(archived.store, shown(), "ctr", "as_served")
    assert list(history.views) == [IMAGE.view, TEXT.view]
    assert history[IMAGE.view].of(slice(None))[:, 0].tolist() == [1, 2, 1, 2]
    assert history[TEXT.view].of(slice(None)).tolist() == [[4, 4]] * 4
    by_names = historical_embeddings(archived.store, shown(), [TEXT.view], "as_served")
    assert list(by_names.views) == [TEXT.view]


def test_a_log_in_files_is_read_like_one_in_memory(archived: Archived, tmp_path: Path) -> None:
    log = shown(50)
    (tmp_path / "log").mkdir()
    for part in range(2):
        log.take(np.arange(part * 25, part * 25 + 25)).write(tmp_path / "log" / f"{part}.parquet")
    in_memory = historical_embeddings(archived.store, log, "ctr", "as_of_content")
    streamed = historical_embeddings(
        archived.store, tmp_path / "log", "ctr", "as_of_content", batch_rows=7, progress=True
    )
    for view in in_memory.views:
        assert streamed[view].rows.tolist() == in_memory[view].rows.tolist()
        assert streamed[view].vectors.tobytes() == in_memory[view].vectors.tobytes()


@pytest.mark.parametrize("named", [True, False])
def test_a_large_matrix_lies_in_a_file_and_is_the_same(archived: Archived, tmp_path: Path, named: bool) -> None:
    place = MatrixPlace(limit=16, folder=tmp_path / "matrices" if named else None)
    small = historical_embeddings(archived.store, shown(), "ctr", "as_of_content")[IMAGE.view]
    large = historical_embeddings(archived.store, shown(), "ctr", "as_of_content", place=place)[IMAGE.view]
    assert isinstance(large.vectors, np.memmap)
    assert not isinstance(small.vectors, np.memmap)
    assert large.vectors.tobytes() == small.vectors.tobytes()
    if named:
        large.vectors.flush()
        assert np.load(tmp_path / "matrices" / f"{IMAGE.view}.npy").tobytes() == small.vectors.tobytes()


def test_tensors_share_memory_with_the_arrays(archived: Archived) -> None:
    history = historical_embeddings(archived.store, shown(), "ctr", "as_served")
    tensors = history.torch()[IMAGE.view]
    assert tensors.vectors.data_ptr() == history[IMAGE.view].vectors.ctypes.data
    assert tensors.vectors[tensors.rows].tolist() == history[IMAGE.view].of(slice(None)).tolist()
    assert tensors.rows.dtype == torch.int32
    assert tensors.status.tolist() == [Status.HIT] * 4


def test_shares_of_oov_and_of_later_content_are_told(archived: Archived) -> None:
    early = impressions_of([(URLS[0], -5), (URLS[1], 6), ("http://h.example/never.jpg", 0), (URLS[0], 11)])
    served = historical_embeddings(archived.store, early, [IMAGE.view], "as_served")[IMAGE.view]
    assert served.of(slice(None))[:, 0].tolist() == [0, 0, 0, 1]
    assert (served.oov_share, served.fell_back_share) == (0.75, 0.0)
    content = historical_embeddings(archived.store, early, [IMAGE.view], "as_of_content")[IMAGE.view]
    assert content.of(slice(None))[:, 0].tolist() == [1, 2, 0, 3]
    assert (content.oov_share, content.fell_back_share) == (0.25, 0.25)


def test_a_history_without_rows_answers_oov(tmp_path: Path) -> None:
    archived = Archived.at(tmp_path)
    for reading in ("as_served", "as_of_content"):
        read = historical_embeddings(archived.store, shown(), "ctr", reading)[IMAGE.view]  # type: ignore[arg-type]
        assert read.vectors.shape == (1, IMAGE.dim)
        assert read.oov_share == 1


def test_an_id_that_history_does_not_have_is_an_error_and_one_that_was_not_logged_is_oov(archived: Archived) -> None:
    name = f"{IMAGE.view}__embedding_id"
    never = impressions_of([(URLS[0], 3)] * 2, **{name: pd.Series([7, 8], dtype="Int64")})
    with pytest.raises(UnknownIds, match=r"2 of 2 embedding ids are not in the history of 'tiny__v1', 7 for one"):
        historical_embeddings(archived.store, never, [IMAGE.view], "as_logged")
    none = impressions_of([(URLS[0], 3)], **{name: pd.Series([None], dtype="Int64")})
    assert historical_embeddings(archived.store, none, [IMAGE.view])[IMAGE.view].oov_share == 1


def test_what_cannot_be_read_is_refused_by_name(archived: Archived) -> None:
    with pytest.raises(ImpressionsError, match="lack 'tiny__v1__embedding_id'"):
        historical_embeddings(archived.store, shown(), "ctr", "as_logged")
    with pytest.raises(ImpressionsError, match="lack 'text', the key of text_lstm__v1"):
        historical_embeddings(archived.store, impressions_of([(URLS[0], 3)]), "ctr", "as_served")
    with pytest.raises(ValueError, match="'as_dreamt' is not allowed: as_logged, as_served, as_of_content"):
        historical_embeddings(archived.store, shown(), "ctr", "as_dreamt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no view is named"):
        historical_embeddings(archived.store, shown(), [], "as_served")
