"""One device, shared by all encoders: batches leave their lines for it in a fair order."""

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from encoders.compute import Plan, compute_in_threads
from encoders.cores import Cores
from encoders.encoder import EncodeError, Encoder
from encoders.line import Group, Line, Vector, Waiting
from encoders.memory import keep_freed_memory, share_one_heap
from encoders.metrics import RetinaMetrics

logger = logging.getLogger(__name__)


class SharedDevice:
    """Computes what waits in lines; belongs to one event loop.

    A batch leaves its line when a thread of the device is free and the batch is due (`Line.due_at`). Among several due
    lines, the one goes first whose passes have taken least of the device's time: a slow network gets no more of it than
    a fast one.

    Args:
        plan: threads and batch sizes of the device.
        cores: that decoding shares with it.
        metrics: told of each pass.
    """

    def __init__(self, plan: Plan, cores: Cores, metrics: RetinaMetrics) -> None:
        share_one_heap()
        keep_freed_memory()
        self._plan = plan
        self._cores = cores
        self._metrics = metrics
        self._free = plan.lanes
        self._threads = ThreadPoolExecutor(
            plan.lanes, thread_name_prefix="compute", initializer=partial(compute_in_threads, plan.threads)
        )
        self._lines: dict[str, Line] = {}
        self._paces: dict[str, tuple[float, float]] = {}  # fingerprint → fastest pass, seconds an input
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lanes(self) -> int:
        """Passes that run at a time."""
        return self._plan.lanes

    def close(self) -> None:
        """Waits for the passes that are under way."""
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown()

    @contextmanager
    def line(self, encoder: Encoder) -> Iterator[Line]:
        """An encoder's line, for a call; it goes with its last call, since it holds the encoder in memory."""
        fingerprint = encoder.spec.fingerprint
        line = self._lines.get(fingerprint)
        if line is None:
            line = self._lines[fingerprint] = Line(encoder, self._plan.batch(encoder.spec.modality), self._plan.age)
            # As if it had been here all along: who was away for long has no claim to the device alone.
            line.used = min((other.used for other in self._lines.values() if other is not line), default=0.0)
            line.fastest, line.seconds_each = self._paces.get(fingerprint, (0.0, 0.0))
        line.calls += 1
        try:
            yield line
        finally:
            line.calls -= 1
            self._paces[fingerprint] = line.fastest, line.seconds_each
            if not line.calls:
                self._lines.pop(fingerprint)

    def seconds_each(self, fingerprint: str) -> float:
        """What an input of an encoder takes on the device, lately; 0 where that is not known."""
        line = self._lines.get(fingerprint)
        return line.seconds_each if line else self._paces.get(fingerprint, (0.0, 0.0))[1]

    def submit(self, line: Line, network_inputs: Sequence[Any], deadline: float) -> Group:
        """Puts inputs into a line; `outcomes` waits for them."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        is_text = line.encoder.spec.modality == "text"
        group = Group(loop.create_future(), [None] * len(network_inputs), len(network_inputs))
        for place, each in enumerate(network_inputs):
            line.add(Waiting(each, now, deadline, len(each) if is_text else 0, group, place))
        return group

    async def outcomes(self, line: Line, group: Group) -> list[Vector | EncodeError | None]:
        """The vector (dim,) of each input, or why it has none. Cancelling it takes out those whose pass has not begun.

        Raises:
            TooLate: the deadline cannot be met.
        """
        try:
            if group.left:
                await group.done
        finally:
            if group.left:
                line.discard_group(group)
        return group.outcomes

    def serve(self) -> None:
        """Starts the passes that are due; to be called when something was put into a line, or nothing more comes."""
        now = asyncio.get_running_loop().time()
        while self._free and (
            due := [line for line in self._lines.values() if line.due_at(idle=self._cores.idle) <= now]
        ):
            line = min(due, key=lambda each: each.used)
            late = line.late
            batch = line.take(now)
            metrics = self._metrics.of(line.encoder.spec.view)
            metrics.late.inc(line.late - late)
            metrics.waiting.set(len(line))
            if batch:
                self._start(line, batch)
        self._wait_for_age(now)

    def _wait_for_age(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Without a free thread, the end of a pass looks at the lines again.
        idle = self._cores.idle
        at = (
            min((line.due_at(idle=idle) for line in self._lines.values()), default=math.inf) if self._free else math.inf
        )
        if at < math.inf:
            self._timer = asyncio.get_running_loop().call_at(max(at, now), self.serve)

    def _start(self, line: Line, batch: Sequence[Waiting]) -> None:
        self._free -= 1
        self._cores.begin_pass()
        inputs = [waiting.network_input for waiting in batch]
        run = asyncio.get_running_loop().run_in_executor(self._threads, _timed, line.encoder, inputs)
        run.add_done_callback(partial(self._finish, line, batch))

    def _finish(
        self,
        line: Line,
        batch: Sequence[Waiting],
        run: "asyncio.Future[tuple[list[Vector | EncodeError], float]]",
    ) -> None:
        self._free += 1
        self._cores.end_pass()
        view = line.encoder.spec.view
        try:
            outcomes, seconds = run.result()
        except Exception as error:  # a bug of an encoder: its callers are told, the device goes on
            logger.exception("%s: a pass failed", view)
            outcomes, seconds = [EncodeError(f"{type(error).__name__}: {error}")] * len(batch), 0.0
        line.measured(seconds, len(batch))
        metrics = self._metrics.of(view)
        metrics.batch_size.observe(len(batch))
        metrics.compute_seconds.observe(seconds)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.settle(outcome)
        self.serve()


def _timed(encoder: Encoder, inputs: Sequence[Any]) -> tuple[list[Vector | EncodeError], float]:
    began = time.perf_counter()
    outcomes = forward(encoder, inputs)
    return outcomes, time.perf_counter() - began


def forward(encoder: Encoder, inputs: Sequence[Any]) -> list[Vector | EncodeError]:
    """The vector (dim,) of each input, or why it has none.

    A pass that fails is repeated one input at a time, so that one that is too large does not fail the others. Values
    that are not finite are an `EncodeError`, and so said to be worth a retry: a device that computes nonsense is not
    the input's fault, and whoever asks bounds the number of tries.
    """
    try:
        vectors = encoder.encode(inputs)
    except EncodeError as error:
        if len(inputs) == 1:
            return [error]
        return [one for each in inputs for one in forward(encoder, [each])]
    finite = np.atleast_1d(np.isfinite(vectors).all(axis=1))  # (B,)
    nonsense = EncodeError("the network answered values that are not finite")
    return [vector if is_finite else nonsense for vector, is_finite in zip(vectors, finite, strict=True)]
