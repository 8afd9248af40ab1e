"""Stages that batches go through, each in threads of its own: while one is written, the next is embedded."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Generic, Self, TypeVar

B = TypeVar("B")

ROOM = 1  # batches that wait before a stage: the next is there when one is done, and memory holds a few


@dataclass(frozen=True, slots=True)
class Stage(Generic[B]):
    """What is done with a batch, and with how many at a time."""

    work: Callable[[B], None]
    width: int = 1


class Stages(Generic[B]):
    """A line of stages; a context manager whose end waits for the batches that are in it.

    Batches come out in the order in which they went in; in between, a later one may overtake where a stage is wide.

    Args:
        stages: in their order.
        overlap: whether stages have threads; without, `offer` does all the work before it returns.
    """

    def __init__(self, *stages: Stage[B], overlap: bool = True) -> None:
        self._stages = stages
        self._overlap = overlap
        self._lines: list[Queue[tuple[int, B] | None]] = [Queue(ROOM) for _ in stages]
        self._done: Queue[tuple[int, B]] = Queue()
        self._early: dict[int, B] = {}  # by number, what overtook one that is not out yet
        self._offered = 0
        self._finished = 0
        self._broken: BaseException | None = None
        self._threads: list[list[threading.Thread]] = []

    @property
    def inside(self) -> int:
        """Batches that were offered and not yet answered as finished."""
        return self._offered - self._finished

    def offer(self, batch: B, seconds: float) -> bool:
        """Takes a batch in; False where there was no room for `seconds`.

        Raises:
            BaseException: what a stage raised: no batch goes any further.
        """
        self._raise()
        numbered = (self._offered, batch)
        if self._overlap:
            try:
                self._lines[0].put(numbered, timeout=seconds)
            except Full:
                return False
            self._offered += 1
            return True
        self._offered += 1
        for stage in self._stages:
            stage.work(batch)
        self._done.put(numbered)
        return True

    def finished(self, seconds: float = 0.0) -> list[B]:
        """The batches that went through all stages since the last call, in order; waits so long for one.

        Raises:
            BaseException: what a stage raised.
        """
        batches: list[B] = []
        while self.inside:
            self._raise()
            if self._finished in self._early:
                batches.append(self._early.pop(self._finished))
                self._finished += 1
                continue
            try:
                number, batch = self._done.get(block=bool(seconds) and not batches, timeout=seconds or None)
            except Empty:
                break
            self._early[number] = batch
        self._raise()
        return batches

    def __enter__(self) -> Self:
        if self._overlap:
            outs = [*self._lines[1:], self._done]
            for i, (stage, line, out) in enumerate(zip(self._stages, self._lines, outs, strict=True)):
                # Daemons: a process that was told to die twice does not wait for Retina.
                threads = [
                    threading.Thread(target=self._run, args=(stage, line, out), name=f"stage {i + 1}", daemon=True)
                    for _ in range(stage.width)
                ]
                for thread in threads:
                    thread.start()
                self._threads.append(threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line, threads in zip(self._lines, self._threads, strict=False):
            for _ in threads:
                line.put(None)
            for thread in threads:
                thread.join()

    def _run(self, stage: Stage[B], line: "Queue[tuple[int, B] | None]", out: "Queue[tuple[int, B]]") -> None:
        while (numbered := line.get()) is not None:
            try:
                if self._broken is None:
                    stage.work(numbered[1])
            except BaseException as error:  # noqa: BLE001 - raised in the thread that offers
                self._broken = error
            if out is not self._done or self._broken is None:
                out.put(numbered)

    def _raise(self) -> None:
        if self._broken is not None:
            raise self._broken
