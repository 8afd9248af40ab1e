"""Writing rows: one statement each, bounded in flight, and which keys failed where some did."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from feature_repo.online.cluster import WRITE
from feature_repo.online.reads import awaitable
from feature_repo.online.rows import RowToWrite, described, key_values
from feature_repo.online.statements import RawBound
from feature_repo.session import StoreUnavailable

NAMED = 3  # failed keys in a message; the rest is counted


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
    writing = _Writing(session, statements, tell=progress is not None)
    try:
        for _ in range(concurrency):
            writing.send()
        ended = 0
        while ended < concurrency:
            if writing.told.get() is None:
                ended += 1
            else:
                progress(1)  # type: ignore[misc]  # nothing is told where there is none
    finally:
        writing.statements = iter(())  # nothing more leaves, where this thread was interrupted
    if writing.broken is not None:
        raise writing.broken
    return writing.failures


class _Writing:
    """Statements on their way: the answer to one sends the next, in the driver's own thread.

    To wake the caller's thread for each would take as long as to send it.

    Attributes:
        statements: position and statement, those that have not left.
        failures: position of a statement → why it failed.
        told: None whenever `send` finds nothing left to send; with `tell` also a position for each answer, which wakes
            the caller.
        broken: what making a statement raised.
    """

    def __init__(self, session: Any, statements: Iterable[RawBound], *, tell: bool) -> None:
        self._session = session
        self._process = os.getpid()
        self._tell = tell
        self._lock = threading.Lock()
        self._unanswered: set[int] = set()
        self.statements: Iterator[tuple[int, RawBound]] = enumerate(statements)
        self.failures: dict[int, BaseException] = {}
        self.told: SimpleQueue[int | None] = SimpleQueue()
        self.broken: BaseException | None = None

    def send(self) -> None:
        """Sends the next statement that can be sent; its answer does the same."""
        while True:
            try:
                with self._lock:
                    position, statement = next(self.statements)
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                if not isinstance(error, StopIteration):
                    self.broken = error
                self.told.put(None)
                return
            self._unanswered.add(position)
            turn = [position]
            try:
                response = self._session.execute_async(statement, execution_profile=WRITE)
            except Exception as error:  # noqa: BLE001 - the driver's, of a statement that never left
                self._settle(position, error)
                continue
            response.add_callbacks(
                callback=lambda _, position, turn: self._answered(position, turn, None),
                callback_args=(position, turn),
                errback=lambda error, position, turn: self._answered(position, turn, error),
                errback_args=(position, turn),
            )
            if _taken(turn):
                return  # the answer is still to come, and goes on
            # It came in that very call: to go on from there would end in as many calls inside one another as rows.

    def _answered(self, position: int, turn: list[int], error: BaseException | None) -> None:
        if os.getpid() != self._process:
            return  # a fork's child closes copies of connections; the rows, and who holds the lock, are its parent's
        if self._settle(position, error) and not _taken(turn):
            self.send()

    def _settle(self, position: int, error: BaseException | None) -> bool:
        try:
            self._unanswered.remove(position)  # at once, in whatever thread
        except KeyError:
            return False  # of a statement that was given to a second node: the driver calls for each of both answers
        if error is not None:
            self.failures[position] = error
        if self._tell:
            self.told.put(position)
        return True


def _taken(turn: list[int]) -> bool:
    """Whether this call took the turn: of two threads one does."""
    try:
        turn.pop()
    except IndexError:
        return False
    return True


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
