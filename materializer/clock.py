"""What time it is: handed in, so that a test need not wait."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of time."""

    def now(self) -> int:
        """Microseconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...


class SystemClock:
    """This machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()
