"""Writing rows: one statement each, bounded in flight, and which keys failed where some did."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from feature_repo.online.cluster import WRITE
from feature_repo.online.direct import DirectWrites, Numbered
from feature_repo.online.reads import awaitable
from feature_repo.online.rows import RowToWrite, described, key_values
from feature_repo.online.statements import RawBound
from feature_repo.session import StoreUnavailable

NAMED = 3  # failed keys in a message; the rest is counted
BURST = 32  # rows that leave together at most: fewer cost more each, more leave a node idle between them
OVERDUE_SECONDS = 0.25  # between two looks for rows whose answers take too long
LEAST_SECONDS = 0.05  # that the driver is given for a row that the first node did not carry out


class WriteFailed(StoreUnavailable):
    """Some rows of a batch were not acknowledged: each may or may not have been written, the others were.

    Writing the whole batch again is safe.

    Attributes:
        failures: position in the batch → the driver's error.
        keys: the keys of those rows, join key → value, in order of position.
    """

    def __init__(self, view: str, rows: Sequence[RowToWrite], failures: Mapping[int, BaseException]) -> None:
        self.failures = dict(sorted(failures.items()))
        self.keys = [key_values(rows[i][0]) for i in self.failures]
        named = "; ".join(f"{described(rows[i][0])}: {error!r}" for i, error in list(self.failures.items())[:NAMED])
        more = f" and {len(failures) - NAMED} more" if len(failures) > NAMED else ""
        super().__init__(f"{view}: {len(failures)} of {len(rows)} rows were not written: {named}{more}")


def write(
    session: Any, statements: Iterable[RawBound], concurrency: int, progress: Callable[[int], Any] | None
) -> dict[int, BaseException]:
    """Writes all, `concurrency` at a time; answers which failed and why. `progress` hears of each, in this thread.

    Each statement is asked for when there is room for it.
    """
    writing = _Writing(session, statements, concurrency, tell=progress is not None)
    try:
        writing.refill()
        looked = time.monotonic()
        while True:
            try:
                if writing.told.get(timeout=OVERDUE_SECONDS) is None:
                    break
                progress(1)  # type: ignore[misc]  # nothing is told where there is none
            except Empty:
                pass
            if time.monotonic() - looked >= OVERDUE_SECONDS:
                writing.end_overdue()
                looked = time.monotonic()
    finally:
        writing.statements = iter(())  # nothing more leaves, where this thread was interrupted
    if writing.broken is not None:
        raise writing.broken
    return writing.failures


class _Writing:
    """Statements on their way: the answers to some send the next, in the driver's own thread.

    To wake the caller's thread for each would take as long as to send it.

    Attributes:
        statements: position and statement, those that have not left.
        failures: position of a statement → why it failed.
        told: None at the end; with `tell` also a position for each answer, which wakes the caller.
        broken: what making a statement raised.
    """

    def __init__(self, session: Any, statements: Iterable[RawBound], concurrency: int, *, tell: bool) -> None:
        self._session = session
        self._process = os.getpid()
        self._tell = tell
        self._concurrency = concurrency
        self._burst = max(1, min(BURST, concurrency // 4))
        self._direct = DirectWrites.of(session, WRITE, self._settle, self._give_driver)
        self._lock = threading.Lock()
        self._room = concurrency  # statements that may leave
        self._ended = False  # nothing is left to send
        self._unanswered: set[int] = set()
        self._refilling: set[int] = set()  # threads
        self.statements: Iterator[Numbered] = enumerate(statements)
        self.failures: dict[int, BaseException] = {}
        self.told: SimpleQueue[int | None] = SimpleQueue()
        self.broken: BaseException | None = None

    def refill(self) -> None:
        """Sends what there is room for, a burst at a time."""
        thread = threading.get_ident()
        if thread in self._refilling:
            return  # an answer came in the very call that sent; the loop below goes on from there
        self._refilling.add(thread)
        try:
            while burst := self._take():
                for position, statement in burst if self._direct is None else self._direct.send(burst):
                    self._give_driver(position, statement)
        finally:
            self._refilling.discard(thread)

    def end_overdue(self) -> None:
        """Ends statements whose answers take too long, where the driver does not."""
        if self._direct is not None:
            self._direct.end_overdue()

    def _take(self) -> list[Numbered]:
        """The next statements, where there is room for a burst of them, or where nothing is on its way."""
        with self._lock:
            if self._ended or (self._room < self._burst and self._room < self._concurrency):
                return []
            size, burst = min(self._room, self._burst), []
            try:
                burst = list(islice(self.statements, size))
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                self.broken = error
            self._room -= len(burst)
            self._unanswered.update(position for position, _ in burst)
            self._ended = len(burst) < size
            if self._ended and self._room == self._concurrency:
                self.told.put(None)
        return burst

    def _give_driver(self, position: int, statement: RawBound, seconds: float | None = None) -> None:
        """Has the driver execute a statement, within its profile's time or what is left of that."""
        limit = {} if seconds is None else {"timeout": max(seconds, LEAST_SECONDS)}
        try:
            response = self._session.execute_async(statement, execution_profile=WRITE, **limit)
        except Exception as error:  # noqa: BLE001 - the driver's, of a statement that never left
            self._settle(position, error)
            return
        response.add_callbacks(
            callback=lambda _, position: self._answered(position, None),
            callback_args=(position,),
            errback=lambda error, position: self._answered(position, error),
            errback_args=(position,),
        )

    def _answered(self, position: int, error: BaseException | None) -> None:
        if os.getpid() == self._process:
            self._settle(position, error)
        # else a fork's child closes copies of connections; the rows, and who holds the lock, are its parent's

    def _settle(self, position: int, error: BaseException | None) -> None:
        try:
            self._unanswered.remove(position)  # at once, in whatever thread
        except KeyError:
            return  # of a statement that was given to a second node: the driver calls for each of both answers
        if error is not None:
            self.failures[position] = error
        if self._tell:
            self.told.put(position)
        with self._lock:
            self._room += 1
            if self._ended and self._room == self._concurrency:
                self.told.put(None)
            enough = self._room >= self._burst or self._room == self._concurrency
        if enough and not self._ended:
            self.refill()


async def write_async(
    session: Any, statements: Iterable[RawBound], concurrency: int, progress: Callable[[int], Any] | None
) -> dict[int, BaseException]:
    """As `write`, without blocking the event loop."""
    numbered = enumerate(statements)
    failures: dict[int, BaseException] = {}

    async def one_after_the_other() -> None:
        for position, statement in numbered:
            try:
                await awaitable(session.execute_async(statement, execution_profile=WRITE))
            except Exception as error:  # noqa: BLE001 - the driver's, told with the others
                failures[position] = error
            if progress is not None:
                progress(1)

    await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
    return failures
