"""A rate, held by a bucket of tokens that fills up at it."""

from collections.abc import Callable


class TokenBucket:
    """For one thread at a time.

    Args:
        per_second: tokens that come.
        most: that it holds; it begins full.
        clock: seconds, of any origin.
    """

    def __init__(self, per_second: float, most: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._most = most
        self._clock = clock
        self._tokens = most
        self._at = clock()

    def has(self, tokens: float) -> bool:
        """Whether there are so many tokens."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._at) * self._per_second)
        self._at = now
        return self._tokens >= tokens

    def take(self, tokens: float) -> bool:
        """Takes tokens, if there are so many; whether it did."""
        if not self.has(tokens):
            return False
        self._tokens -= tokens
        return True

    def wait_seconds(self, tokens: float) -> float:
        """After how long there will be so many tokens, at the earliest."""
        return max(0.0, (min(tokens, self._most) - self._tokens) / self._per_second)
