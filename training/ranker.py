"""Ranking: candidates in a context, scored with uncertainty within a budget of time.

One look-up in EmbArk for each view of the model, all at once; one forward pass. What has not come when the budget nears
its end is scored with the model's OOV embedding: an answer in time with less knowledge beats a late one.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from feature_repo.embeddings import Status
from training.inputs import COLUMNS
from training.model import PARTS, Batch, Seen
from training.saved import Trained
from training.vocabulary import indices

BUDGET_SECONDS = 0.2
FORWARD_SHARE = 0.25  # of the budget at most, kept back for the forward pass; what it was seen to take otherwise
REMEMBERED = 0.9  # of a forward pass that took long: the reserve falls slowly and rises at once
WARM_UP = 500  # candidates; the first pass of a network takes many times as long as the next one


class Answer(Protocol):
    """A look-up's answer for N keys, in their order."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, dim)"""
        ...

    @property
    def status(self) -> NDArray[np.uint8]:
        """(N,) of `feature_repo.embeddings.Status`."""
        ...


class Lookup(Protocol):
    """What answers look-ups, as `serving.client.EmbArkClient` does; asked by several threads at once."""

    def lookup(self, view: str, keys: Sequence[str], timeout: float) -> Answer: ...


class RankError(Exception):
    """Candidates cannot be ranked as asked; the message says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """N candidates in the order in which they were given, scored.

    Attributes:
        score: what they are ranked by: an upper confidence bound of the CTR.
        mean, deviation: of the CTR, by the model's density.
        low, high: between which the true CTR lies with probability 0.9.
        order: positions, the best first.
        status: `image` or `text` → status of each candidate's embedding.
        late: views that did not answer in time, or failed, and why.
        milliseconds: what it took.
    """

    score: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    order: NDArray[np.int64]
    status: Mapping[str, NDArray[np.uint8]]
    late: Mapping[str, str]
    milliseconds: float


class Ranker:
    """Ranks candidates by a trained model. Safe to share between threads.

    Args:
        trained: the model; all its embeddings come from the archive.
        client: answers look-ups.
        budget_seconds: in which a ranking is to be answered.
        exploration: how many standard deviations an upper confidence bound lies above the mean; 0 ranks by the mean.
        clock: seconds.

    Raises:
        RankError: a part of the model is learned, and would run within the request.
    """

    def __init__(
        self,
        trained: Trained,
        client: Lookup,
        *,
        budget_seconds: float = BUDGET_SECONDS,
        exploration: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if trained.config.learned:
            raise RankError(
                f"the model's {' and '.join(trained.config.learned)} network is part of it: bring it into the archive "
                "with `embark export`, and rank with the model that this writes"
            )
        self._trained = trained
        self._model = trained.model.eval()
        self._client = client
        self._budget = budget_seconds
        self._exploration = exploration
        self._clock = clock
        views = trained.config.views
        # Threads that a slow look-up holds must not keep the next request from asking: some are to spare.
        self._threads = ThreadPoolExecutor(max(1, 8 * len(views)), thread_name_prefix="rank")
        self._forward_seconds = 0.0
        self._warm_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def rank(self, context: Mapping[str, object], candidates: Sequence[Mapping[str, object]]) -> Ranking:
        """Scores of `candidates` in `context`.

        Args:
            context: the model's context columns; one that is missing counts as never seen.
            candidates: of each `image_url` and `text`, where the model has them, and its item columns.

        Raises:
            RankError: no candidates.
        """
        started = self._clock()
        if not candidates:
            raise RankError("there are no candidates to rank")
        # 1. ask for all embeddings at once
        views = self._trained.config.views
        keys = {name: [_key(each.get(COLUMNS[name])) for each in candidates] for name in views}
        look_by = started + self._budget - self._reserve()
        futures = {
            name: self._threads.submit(self._look_up, views[name], keys[name], look_by)
            for name in PARTS
            if name in views
        }
        # 2. meanwhile, the categories
        config = self._trained.config.model
        item_BF = self._indices("item", config.item, candidates)
        context_BG = self._indices("context", config.context, [context] * len(candidates))
        # 3. what is there in time
        wait(futures.values(), timeout=max(0.0, look_by - self._clock()))
        late: dict[str, str] = {}
        parts, status = {}, {}
        for name, future in futures.items():
            parts[name], status[name] = self._seen(name, future, len(candidates), late)
        # 4. one forward pass
        began = self._clock()
        batch = Batch(parts, torch.from_numpy(item_BF), torch.from_numpy(context_BG))
        with torch.inference_mode():
            mixture = self._model(batch).double()
            mean_B, deviation_B = mixture.moments()
            low_B, high_B = mixture.quantile(0.05), mixture.quantile(0.95)
        score = (mean_B + self._exploration * deviation_B).numpy()
        self._forward_seconds = max(self._clock() - began, REMEMBERED * self._forward_seconds)
        return Ranking(
            score=score,
            mean=mean_B.numpy(),
            deviation=deviation_B.numpy(),
            low=low_B.numpy(),
            high=high_B.numpy(),
            order=np.argsort(-score, kind="stable"),
            status=status,
            late=late,
            milliseconds=(self._clock() - started) * 1000,
        )

    def _reserve(self) -> float:
        return min(2 * self._forward_seconds, FORWARD_SHARE * self._budget)

    def _look_up(self, view: str, keys: Sequence[str | None], look_by: float) -> tuple[Answer, NDArray[np.int64]]:
        """The answer for the distinct keys, and which of them each candidate has; −1 for one without a key."""
        place = {key: i for i, key in enumerate(dict.fromkeys(key for key in keys if key is not None))}
        seconds = max(0.001, look_by - self._clock())
        answer = self._client.lookup(view, list(place), timeout=seconds)
        return answer, np.array([-1 if key is None else place[key] for key in keys], dtype=np.int64)

    def _seen(
        self, name: str, future: "Future[tuple[Answer, NDArray[np.int64]]]", count: int, late: dict[str, str]
    ) -> tuple[Seen, NDArray[np.uint8]]:
        """The embeddings of a part as the model takes them, with OOV for all that did not come."""
        view, dim = self._trained.config.views[name], self._trained.dims[name]
        none = Seen((torch.zeros((0, dim)),), torch.zeros(count, dtype=torch.int64))
        unavailable = np.full(count, Status.UNAVAILABLE, dtype=np.uint8)
        if not future.done():
            future.cancel()
            late[view] = "no answer within the budget"
            return none, unavailable
        error = future.exception()
        if error is not None:
            late[view] = f"{type(error).__name__}: {error}"
            return none, unavailable
        answer, place_B = future.result()
        if answer.vectors.shape[1] != dim:
            raise RankError(
                f"{view} answers embeddings of {answer.vectors.shape[1]} values, the model was trained on {dim}"
            )
        # one row more, of what has no key
        status_U = np.append(answer.status, np.uint8(Status.FAILED))
        hit_U = status_U == Status.HIT
        row_U = np.where(hit_U, np.cumsum(hit_U), 0)
        vectors = torch.from_numpy(np.ascontiguousarray(answer.vectors[hit_U[:-1]]))
        return Seen((vectors,), torch.from_numpy(row_U[place_B])), status_U[place_B]

    def _indices(self, side: str, names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> NDArray[np.int64]:
        columns = {name: [row.get(name) for row in rows] for name in names}
        return indices(self._trained.vocabularies[side], columns, names, len(rows))

    def _warm_up(self) -> None:
        for _ in range(2):  # the second pass is what the next ones take
            began = self._clock()
            config = self._trained.config
            zeros = {name: torch.zeros((WARM_UP, self._trained.dims[name])) for name in config.views}
            parts = {name: Seen((each,), torch.arange(1, 1 + WARM_UP)) for name, each in zeros.items()}
            item_BF = torch.zeros((WARM_UP, len(config.model.item)), dtype=torch.int64)
            context_BG = torch.zeros((WARM_UP, len(config.model.context)), dtype=torch.int64)
            with torch.inference_mode():
                mixture = self._model(Batch(parts, item_BF, context_BG)).double()
                mixture.moments()
                mixture.quantile(0.05)
                mixture.quantile(0.95)
            self._forward_seconds = self._clock() - began


def _key(value: object) -> str | None:
    """A look-up's key; None for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value)
