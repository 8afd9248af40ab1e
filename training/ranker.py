"""Ranking: candidates in a context, scored with uncertainty within a budget of time.

One call of EmbArk for all views of the model; one forward pass. What has not come when the budget nears its end is
scored with the model's OOV embedding: an answer in time with less knowledge beats a late one.
"""

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
from training.candidates import Keys, together
from training.inputs import COLUMNS
from training.model import PARTS, Batch, Seen
from training.saved import Trained
from training.threads import one_thread
from training.vocabulary import indices

BUDGET_SECONDS = 0.2
FORWARD_SHARE = 0.25  # of the budget at most, kept back for the forward pass; what it was seen to take otherwise
REMEMBERED = 0.9  # of a forward pass that took long: the reserve falls slowly and rises at once
AT_ONCE = 8  # calls: threads that a slow one holds must not keep the next request from asking
NO_ID = -1  # of what no look-up answered; history takes it for none
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

    @property
    def embedding_id(self) -> NDArray[np.int64]:
        """(N,)"""
        ...


class Lookup(Protocol):
    """What answers look-ups, as `serving.client.EmbArkClient` does; asked by several threads at once."""

    def lookup_many(
        self, views: Sequence[str], columns: Mapping[str, Sequence[str]], timeout: float
    ) -> Mapping[str, Answer]:
        """The answers of several views, each for the keys of its column, `image_url` or `text`."""
        ...


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
        embedding_id: view → id of each candidate's embedding, NO_ID where none was answered; to be logged with the
            impression as `<view>__embedding_id`, for history to read `as_logged`.
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
    embedding_id: Mapping[str, NDArray[np.int64]]
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
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="rank")
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
        # 1. ask for all embeddings at once, each distinct key once
        views = self._trained.config.views
        keys = {name: Keys.of(each.get(COLUMNS[name]) for each in candidates) for name in PARTS if name in views}
        look_by = started + self._budget - self._reserve()
        calls = {
            self._threads.submit(self._look_up, {name: keys[name].distinct for name in names}, look_by): names
            for names in together(keys)
        }
        # 2. meanwhile, the categories
        config = self._trained.config.model
        item_BF = self._indices("item", config.item, candidates)
        context_BG = self._indices("context", config.context, [context]).repeat(len(candidates), 0)
        # 3. what is there in time
        wait(calls, timeout=max(0.0, look_by - self._clock()))
        late: dict[str, str] = {}
        parts, status, ids = {}, {}, {}
        for call, names in calls.items():
            answers = self._answers(call, [views[name] for name in names], late)
            for name in names:
                view = views[name]
                parts[name], status[name], ids[view] = self._seen(name, keys[name], answers.get(view))
        # 4. one forward pass
        began = self._clock()
        scored = self._scored(Batch(parts, torch.from_numpy(item_BF), torch.from_numpy(context_BG)))
        score = scored.mean + self._exploration * scored.deviation
        self._forward_seconds = max(self._clock() - began, REMEMBERED * self._forward_seconds)
        return Ranking(
            score=score,
            mean=scored.mean,
            deviation=scored.deviation,
            low=scored.low,
            high=scored.high,
            order=np.argsort(-score, kind="stable"),
            status=status,
            embedding_id=ids,
            late=late,
            milliseconds=(self._clock() - started) * 1000,
        )

    def _scored(self, batch: Batch) -> "_Scored":
        with torch.inference_mode(), one_thread():
            mixture = self._model(batch).double()
            mean_B, deviation_B = mixture.moments()
            low_B, high_B = mixture.quantiles(0.05, 0.95)
        return _Scored(mean_B.numpy(), deviation_B.numpy(), low_B.numpy(), high_B.numpy())

    def _reserve(self) -> float:
        return min(2 * self._forward_seconds, FORWARD_SHARE * self._budget)

    def _look_up(self, keys: Mapping[str, Sequence[str]], look_by: float) -> Mapping[str, Answer]:
        """The answers for the distinct keys of some parts, by view."""
        views = [self._trained.config.views[name] for name in keys]
        columns = {COLUMNS[name]: each for name, each in keys.items()}
        return self._client.lookup_many(views, columns, timeout=max(0.001, look_by - self._clock()))

    def _answers(
        self, call: "Future[Mapping[str, Answer]]", views: Sequence[str], late: dict[str, str]
    ) -> Mapping[str, Answer]:
        """What a call answered; why it did not, or not for some view, goes into `late`."""
        if not call.done():
            call.cancel()
            late.update(dict.fromkeys(views, "no answer within the budget"))
            return {}
        error = call.exception()
        if error is not None:
            late.update(dict.fromkeys(views, f"{type(error).__name__}: {error}"))
            return {}
        answers = call.result()
        for view in views:
            if len(answers[view].status) and (answers[view].status == Status.UNAVAILABLE).all():
                late[view] = "the online store did not answer in time"
        return answers

    def _seen(self, name: str, keys: Keys, answer: Answer | None) -> tuple[Seen, NDArray[np.uint8], NDArray[np.int64]]:
        """The embeddings of a part as the model takes them, with OOV for all that did not come; statuses and ids."""
        view, dim = self._trained.config.views[name], self._trained.dims[name]
        if answer is None:
            count = len(keys.place)
            none = Seen((torch.zeros((0, dim)),), torch.zeros(count, dtype=torch.int64))
            return none, np.full(count, Status.UNAVAILABLE, dtype=np.uint8), np.full(count, NO_ID, dtype=np.int64)
        if answer.vectors.shape[1] != dim:
            raise RankError(
                f"{view} answers embeddings of {answer.vectors.shape[1]} values, the model was trained on {dim}"
            )
        # one row more, of what has no key
        status_U = np.append(answer.status, np.uint8(Status.FAILED))
        id_U = np.append(answer.embedding_id, NO_ID)
        hit_U = status_U == Status.HIT
        row_U = np.where(hit_U, np.cumsum(hit_U), 0)
        vectors = torch.from_numpy(answer.vectors[hit_U[:-1]])  # a copy: an answer's memory is read-only
        seen = Seen((vectors,), torch.from_numpy(row_U[keys.place]))
        return seen, status_U[keys.place], id_U[keys.place]

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
            self._scored(Batch(parts, item_BF, context_BG))
            self._forward_seconds = self._clock() - began


@dataclass(frozen=True, slots=True)
class _Scored:
    """Of each candidate, (B,)."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
