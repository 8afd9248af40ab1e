"""A process's cores, where decoding and passes share them."""

import asyncio
import math
from collections import deque


class Cores:
    """Lets no more pictures be decoded at a time than there are cores without a pass, but always one; belongs to one
    event loop.

    Where each ran as it came, two cores had four threads that compute: they took the caches from each other, and a pass
    of MobileNetV3-small an eighth more CPU time.

    Args:
        count: that passes and decoding share; 0 where passes have a device of their own, and nothing is held back.
        of_a_pass: that a pass uses.
    """

    def __init__(self, count: int, of_a_pass: int = 1) -> None:
        self._count = count or math.inf
        self._of_a_pass = of_a_pass
        self._passes = 0
        self._decoding = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def idle(self) -> bool:
        """Whether nothing is decoded or computed that inputs could wait for at no cost; where passes have a device of
        their own, always."""
        return self._count == math.inf or not (self._passes or self._decoding)

    def begin_pass(self) -> None:
        self._passes += 1

    def end_pass(self) -> None:
        self._passes -= 1
        self._go_on()

    async def __aenter__(self) -> None:
        """Waits for the turn to decode; who came first goes first."""
        if not self._waiting and self._may_decode():
            self._decoding += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove(turn)
            else:  # its turn had just come
                await self.__aexit__()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._decoding -= 1
        self._go_on()

    def _may_decode(self) -> bool:
        return self._decoding < max(1, self._count - self._passes * self._of_a_pass)

    def _go_on(self) -> None:
        while self._waiting and self._may_decode():
            turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            self._decoding += 1
            turn.set_result(None)
