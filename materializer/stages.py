"""Stages that batches go through in order, each in a thread of its own: while one is written, the next is embedded."""

import threading
from collections.abc import Callable
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Generic, Self, TypeVar

B = TypeVar("B")

ROOM = 1  # batches that wait before a stage: the next is there when one is done, and memory holds a few


class Stages(Generic[B]):
    """A line of stages; a context manager whose end waits for the batches that are in it.

    Args:
        work: what each stage does with a batch.
        overlap: whether stages have threads; without, `offer` does all the work before it returns.
    """

    def __init__(self, *work: Callable[[B], None], overlap: bool = True) -> None:
        self._work = work
        self._overlap = overlap
        self._lines: list[Queue[B | None]] = [Queue(ROOM) for _ in work]
        self._done: Queue[B] = Queue()
        self._inside = 0
        self._broken: BaseException | None = None
        self._threads: list[threading.Thread] = []

    @property
    def inside(self) -> int:
        """Batches that were offered and not yet answered as finished."""
        return self._inside

    def offer(self, batch: B, seconds: float) -> bool:
        """Takes a batch in; False where there was no room for `seconds`.

        Raises:
            BaseException: what a stage raised: no batch goes any further.
        """
        self._raise()
        if not self._overlap:
            self._inside += 1
            for each in self._work:
                each(batch)
            self._done.put(batch)
            return True
        try:
            self._lines[0].put(batch, timeout=seconds)
        except Full:
            return False
        self._inside += 1
        return True

    def finished(self, seconds: float = 0.0) -> list[B]:
        """The batches that went through all stages since the last call, in order; waits so long for the first.

        Raises:
            BaseException: what a stage raised.
        """
        batches: list[B] = []
        while self._inside > len(batches):
            self._raise()
            try:
                batches.append(self._done.get(block=bool(seconds) and not batches, timeout=seconds or None))
            except Empty:
                break
        self._inside -= len(batches)
        self._raise()
        return batches

    def __enter__(self) -> Self:
        if self._overlap:
            for stage, (work, line) in enumerate(zip(self._work, self._lines, strict=True)):
                after = self._lines[stage + 1] if stage + 1 < len(self._lines) else None
                thread = threading.Thread(target=self._run, args=(work, line, after), name=f"stage {stage + 1}")
                thread.daemon = True  # a process that was told to die twice does not wait for Retina
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._threads:
            self._lines[0].put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[B], None], line: "Queue[B | None]", after: "Queue[B | None] | None") -> None:
        while (batch := line.get()) is not None:
            try:
                if self._broken is None:
                    work(batch)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that offers
                self._broken = error
            if after is not None:
                after.put(batch)
            elif self._broken is None:
                self._done.put(batch)
        if after is not None:
            after.put(None)

    def _raise(self) -> None:
        if self._broken is not None:
            raise self._broken
