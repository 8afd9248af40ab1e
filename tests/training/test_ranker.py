"""Ranking within a budget, whatever the archive does."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from feature_repo.embeddings import Status
from tests.training.logs import write_log
from training.config import parse
from training.ranker import Ranker, RankError
from training.saved import Trained, new_model
from training.vocabulary import Vocabulary

DIM = 4


@dataclass(frozen=True, slots=True)
class Answered:
    vectors: NDArray[np.float32]
    status: NDArray[np.uint8]


@dataclass
class FakeEmbArk:
    """Answers vectors that depend on the key; OOV for keys with `new` in them.

    Attributes:
        hold: view → set when it may answer.
        fails: view → what it raises.
    """

    hold: dict[str, threading.Event] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    dim: int = DIM
    asked: list[tuple[str, tuple[str, ...], float]] = field(default_factory=list)

    def lookup(self, view: str, keys: Sequence[str], timeout: float) -> Answered:
        self.asked.append((view, tuple(keys), timeout))
        if view in self.hold:
            self.hold[view].wait()
        if view in self.fails:
            raise self.fails[view]
        vectors = np.array([np.random.default_rng(len(k)).standard_normal(self.dim) for k in keys], np.float32)
        status = np.array([Status.OOV if "new" in k else Status.HIT for k in keys], np.uint8)
        vectors = vectors.reshape(len(keys), self.dim)
        vectors[status == Status.OOV] = 0
        return Answered(vectors, status)


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
    # one look-up a view, each distinct key once
    assert sorted(view for view, _, _ in embark.asked) == ["pictures__v1", "titles__v1"]
    assert {view: len(keys) for view, keys, _ in embark.asked} == {"pictures__v1": 5, "titles__v1": 3}


def test_what_is_late_is_scored_with_the_models_oov_embedding_in_time(trained: Trained, embark: FakeEmbArk) -> None:
    rows = candidates(6)
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker:
        expected = ranker.rank({"hour": 8}, [row | {"image_url": "https://a.example/new"} for row in rows])
    embark.hold["pictures__v1"] = threading.Event()
    with Ranker(trained, embark, budget_seconds=1.0) as ranker:
        began = time.monotonic()
        ranking = ranker.rank({"hour": 8}, rows)
        assert time.monotonic() - began < 20  # and not for ever; the budget itself depends on how busy this machine is
        assert ranking.late == {"pictures__v1": "no answer within the budget"}
        assert (ranking.status["image"] == Status.UNAVAILABLE).all()
        assert (ranking.status["text"] == Status.HIT).all()
        assert np.allclose(ranking.mean, expected.mean)
        # the next request is not held up by the one that still hangs
        assert ranker.rank({"hour": 9}, rows).late.keys() == {"pictures__v1"}
    assert all(timeout <= GENEROUS for _, _, timeout in embark.asked)


def test_an_archive_that_fails_costs_its_embeddings_only(trained: Trained, embark: FakeEmbArk) -> None:
    embark.fails["titles__v1"] = ConnectionError("no EmbArk")
    with Ranker(trained, embark, budget_seconds=GENEROUS) as ranker:
        ranking = ranker.rank({"hour": 8}, candidates(3))
    assert ranking.late == {"titles__v1": "ConnectionError: no EmbArk"}
    assert (ranking.status["image"] == Status.HIT).all()


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
