"""How many calls are answered at a time, and how much of their answers may wait to be sent: what is more is refused at
once, while it is cheap.

A hot call is answered without waiting, so where too many come they wait behind: their answers stand in line for the
network and for clients that are busy. An answer that waits for as long as its caller does is work for nothing, so the
line is short.
"""

from types import TracebackType

from serving.refusals import Overloaded, TooLate

MAX_CALLS = 128  # of one process; at 500 keys of 512 floats their answers have 128 MB
MAX_UNSENT_BYTES = 32_000_000  # of answers, which gRPC seems to hold twice: some 70 ms of what a process can send
MARGIN_SECONDS = 0.005  # for the answer to reach its caller
MARGIN_SHARE = 0.1  # of the time that is left, where that is more


class Gate:
    """Open within `with gate:`, once a call; for the thread of the event loop.

    Args:
        most: calls at a time.
        most_unsent: bytes of answers; a call is let in while fewer wait to be sent.
    """

    def __init__(self, most: int = MAX_CALLS, most_unsent: int = MAX_UNSENT_BYTES) -> None:
        self._most = most
        self._most_unsent = most_unsent
        self.inside = 0
        self.unsent = 0
        self.refused = 0

    def __enter__(self) -> None:
        """Raises:
        Overloaded: there is no room.
        """
        if self.inside >= self._most:
            self.refused += 1
            raise Overloaded(f"{self.inside} calls are being answered: again later, or elsewhere")
        if self.unsent >= self._most_unsent:
            self.refused += 1
            raise Overloaded(f"{self.unsent} bytes of answers wait to be sent: again later, or elsewhere")
        self.inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inside -= 1

    def made(self, size: int) -> None:
        """An answer of so many bytes is about to be sent."""
        self.unsent += size

    def sent(self, size: int) -> None:
        """It was sent, or nobody waits for it any more."""
        self.unsent -= size


def budget(remaining: float | None) -> float | None:
    """Seconds that a look-up may take of those that its call has left; None: no deadline was given.

    Raises:
        TooLate: nothing would be left for the way back.
    """
    if remaining is None:
        return None
    left = remaining - max(MARGIN_SECONDS, MARGIN_SHARE * remaining)
    if left <= 0:
        raise TooLate("the deadline leaves no time for an answer")
    return left
