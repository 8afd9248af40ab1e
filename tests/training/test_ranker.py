"""Ranking within a budget, whatever the archive does."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from feature_repo.embeddings import Status
from tests.training.logs import write_log
from training.candidates import KEYS_A_CALL
from training.config import parse
from training.ranker import NO_ID, Ranker, RankError
from training.saved import Trained, new_model
from training.threads import one_thread
from training.vocabulary import Vocabulary

DIM = 4
COLUMN_OF = {"pictures__v1": "image_url", "titles__v1": "text"}


@dataclass(frozen=True, slots=True)
class Answered:
    vectors: NDArray[np.float32]
    status: NDArray[np.uint8]
    embedding_id: NDArray[np.int64]


@dataclass
class FakeEmbArk:
    """Answers vectors that depend on the key; OOV for keys with `new` in them.

    Attributes:
        hold: view → set when it may answer.
        fails: view → what it raises.
        away: views of which the store gives nothing.
        calls: view → number of keys, of each call.
    """

    hold: dict[str, threading.Event] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    dim: int = DIM
    away: set[str] = field(default_factory=set)
    calls: list[dict[str, int]] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)

    def lookup_many(
        self, views: Sequence[str], columns: Mapping[str, Sequence[str]], timeout: float
    ) -> dict[str, Answered]:
        self.calls.append({view: len(columns[COLUMN_OF[view]]) for view in views})
        self.timeouts.append(timeout)
        for view in views:
            if view in self.hold:
                self.hold[view].wait()
            if view in self.fails:
                raise self.fails[view]
        return {view: self._answer(view, columns[COLUMN_OF[view]]) for view in views}

    def _answer(self, view: str, keys: Sequence[str]) -> Answered:
        if view in self.away:
            nothing = np.zeros((len(keys), self.dim), np.float32)
            return Answered(nothing, np.full(len(keys), Status.UNAVAILABLE, np.uint8), np.full(len(keys), 3))
        vectors = np.array([np.random.default_rng(len(k)).standard_normal(self.dim) for k in keys], np.float32)
        status = np.array([Status.OOV if "new" in k else Status.HIT for k in keys], np.uint8)
        vectors = vectors.reshape(len(keys), self.dim)
        vectors[status == Status.OOV] = 0
        return Answered(vectors, status, np.array([100 + len(k) for k in keys], np.int64))


@pytest.fixture
def trained() -> Trained:
    config = parse(
        {
            "data": {"train": "a", "valid": "b", "test": "c"},
            "model": {
                "image": "pictures__v1",
                "text": "titles__v1",
                "item": ["publisher"],
                "context": ["hour"],
                "width": 8,
            },
        }
    )
    torch.manual_seed(0)
    vocabularies = {"item": {"publisher": Vocabulary(("p0", "p1"))}, "context": {"hour": Vocabulary(("8", "9"))}}
    found = new_model(config, vocabularies, {"image": DIM, "text": DIM})
    for part in ("image", "text"):
        torch.nn.init.normal_(found.model.part(part).oov_D)
    return found


@pytest.fixture
def embark() -> Iterator[FakeEmbArk]:
    fake = FakeEmbArk()
    yield fake
    for event in fake.hold.values():
        event.set()


def candidates(count: int) -> list[dict[str, object]]:
    return [
        {"image_url": f"https://a.example/{'i' * (i % 5)}", "text": "t" * (1 + i % 3), "publisher": f"p{i % 3}"}
        for i in range(count)
    ]


GENEROUS = 60.0  # seconds: nothing here is late, however busy the machine is


def test_candidates_are_scored_with_uncertainty_and_ordered(trained: Trained, embark: FakeEmbArk) -> None:
    with Ranker(trained, embark, budget_seconds=GENEROUS, exploration=1.5) as ranker:
        ranking = ranker.rank({"hour": 8}, candidates(40))
    assert (np.diff(ranking.score[ranking.order]) <= 0).all()
    assert np.allclose(ranking.score, ranking.mean + 1.5 * ranking.deviation)
    assert ((ranking.low < ranking.mean) & (ranking.mean < ranking.high)).all()
    assert not ranking.late
    assert embark.calls == [{"pictures__v1": 5, "titles__v1": 3}]  # one call, each distinct key once
    # the ids that a ranker logs
    assert ranking.embedding_id["titles__v1"].tolist() == [100 + len(str(each["text"])) for each in candidates(40)]


def test_what_is_late_is_scored_with_the_models_oov_embedding_in_time(trained: Trained, embark: FakeEmbArk) -> None:
    rows = candidates(6)
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker:
        new = {"image_url": "https://a.example/new", "text": "new"}
        expected = ranker.rank({"hour": 8}, [row | new for row in rows])
    embark.hold["pictures__v1"] = threading.Event()
    with Ranker(trained, embark, budget_seconds=1.0) as ranker:
        began = time.monotonic()
        ranking = ranker.rank({"hour": 8}, rows)
        assert time.monotonic() - began < 20  # and not for ever; the budget itself depends on how busy this machine is
        assert ranking.late == dict.fromkeys(COLUMN_OF, "no answer within the budget")
        assert all((each == Status.UNAVAILABLE).all() for each in ranking.status.values())
        assert all((each == NO_ID).all() for each in ranking.embedding_id.values())
        assert np.allclose(ranking.mean, expected.mean)
        # the next request is not held up by the one that still hangs
        assert ranker.rank({"hour": 9}, rows).late.keys() == COLUMN_OF.keys()
    assert all(timeout <= GENEROUS for timeout in embark.timeouts)


def test_what_the_store_does_not_give_in_time_is_late_and_the_rest_is_not(trained: Trained, embark: FakeEmbArk) -> None:
    rows = candidates(6)
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker:
        expected = ranker.rank({"hour": 8}, [row | {"image_url": "https://a.example/new"} for row in rows])
        embark.away.add("pictures__v1")
        ranking = ranker.rank({"hour": 8}, rows)
    assert ranking.late == {"pictures__v1": "the online store did not answer in time"}
    assert (ranking.status["text"] == Status.HIT).all()
    assert np.allclose(ranking.mean, expected.mean)
    assert (ranking.embedding_id["pictures__v1"] == 3).all()  # the OOV embedding's: it was answered


def test_more_keys_than_a_call_may_have_are_asked_for_in_two(trained: Trained, embark: FakeEmbArk) -> None:
    rows = [{"image_url": f"https://a.example/{i}", "text": f"t{i}"} for i in range(KEYS_A_CALL // 2 + 1)]
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker:
        assert not ranker.rank({"hour": 8}, rows).late
    assert sorted(map(tuple, embark.calls)) == [("pictures__v1",), ("titles__v1",)]


def test_kernels_have_one_thread_while_it_ranks_and_as_many_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_an_archive_that_fails_costs_its_embeddings_only(trained: Trained, embark: FakeEmbArk) -> None:
    embark.fails["titles__v1"] = ConnectionError("no EmbArk")
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker:
        ranking = ranker.rank({"hour": 8}, candidates(3))
    assert ranking.late == dict.fromkeys(COLUMN_OF, "ConnectionError: no EmbArk")
    assert np.isfinite(ranking.score).all()


def test_candidates_without_a_key_or_a_known_category_are_scored(trained: Trained, embark: FakeEmbArk) -> None:
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker:
        ranking = ranker.rank({}, [{"text": "t", "image_url": float("nan")}, {"image_url": "https://a.example/i"}, {}])
    assert ranking.status["image"].tolist() == [Status.FAILED, Status.HIT, Status.FAILED]
    assert ranking.status["text"].tolist() == [Status.HIT, Status.FAILED, Status.FAILED]
    assert np.isfinite(ranking.score).all()
    assert len(set(ranking.score.round(9))) == 3


def test_what_cannot_be_ranked_is_said(trained: Trained, embark: FakeEmbArk, tmp_path: Path) -> None:
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker, pytest.raises(RankError, match="no candidates"):
        ranker.rank({"hour": 8}, [])
    embark.dim = DIM + 1
    with (
        Ranker(trained, embark, budget_seconds=GENEROUS) as ranker,
        pytest.raises(RankError, match="embeddings of 5 values, the model was trained on 4"),
    ):
        ranker.rank({"hour": 8}, candidates(2))
    learned = new_model(
        write_log(tmp_path, count=50),
        {"item": {"publisher": Vocabulary(())}, "context": {"hour": Vocabulary(())}},
        {"image": 6, "text": 5},
    )
    with pytest.raises(RankError, match=r"image and text network is part of it.*embark export"):
        Ranker(learned, embark)
