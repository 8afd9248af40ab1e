"""How many calls are answered at a time: what is more is refused at once, while it is cheap."""

from types import TracebackType

from serving.refusals import Overloaded, TooLate

MAX_CALLS = 128  # of one process; at 500 keys of 512 floats their answers have 128 MB
MARGIN_SECONDS = 0.005  # for the answer to reach its caller
MARGIN_SHARE = 0.1  # of the time that is left, where that is more


class Gate:
    """Open within `with gate:`, once a call; for the thread of the event loop.

    Args:
        most: calls at a time.
    """

    def __init__(self, most: int = MAX_CALLS) -> None:
        self._most = most
        self.inside = 0
        self.refused = 0

    def __enter__(self) -> None:
        """Raises:
        Overloaded: there is no room.
        """
        if self.inside >= self._most:
            self.refused += 1
            raise Overloaded(f"{self.inside} calls are being answered: again later, or elsewhere")
        self.inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.inside -= 1


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
