"""Small pictures of items. The operator's browser never asks strangers: the console does, with Retina's limits.

What is downloaded is decoded and encoded anew, so that the browser is handed a JPEG of ours and nothing else.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from embark.thumbnail import Source, small
from encoders.encoder import EncoderError

KEPT_BYTES = 32 << 20
FAILED_BYTES = 64  # what one that failed counts for
FAILED_SECONDS = 10.0  # for which it is not tried again: what was missing may be there by then
AT_ONCE = 8  # downloads and decodings


class Thumbnails:
    """Makes and keeps them; belongs to one event loop.

    Args:
        source: what downloads.
        kept_bytes: of JPEGs, the least recently used of which go.
        clock: seconds, of any origin.
    """

    def __init__(
        self, source: Source, *, kept_bytes: int = KEPT_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._left = kept_bytes
        self._clock = clock
        self._kept: OrderedDict[str, tuple[bytes | None, float]] = OrderedDict()  # JPEG, and when it was made
        self._under_way: dict[str, asyncio.Task[bytes | None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    async def of(self, key: str) -> bytes | None:
        """A JPEG of at most 240 pixels a side; None where the picture cannot be had."""
        jpeg, made_at = self._kept.get(key, (None, float("-inf")))
        if jpeg is not None or self._clock() - made_at < FAILED_SECONDS:
            self._kept.move_to_end(key)
            return jpeg
        if key not in self._under_way:
            task = self._under_way[key] = asyncio.create_task(self._made(key))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(self._under_way[key])

    async def _made(self, key: str) -> bytes | None:
        async with self._room:
            try:
                jpeg = await asyncio.to_thread(small, await self._source.fetch(key))
            except EncoderError:
                jpeg = None
        if key in self._kept:
            self._left += _size(self._kept.pop(key)[0])
        self._kept[key] = jpeg, self._clock()
        self._left -= _size(jpeg)
        while self._left < 0:
            _, (oldest, _) = self._kept.popitem(last=False)
            self._left += _size(oldest)
        return jpeg


def _size(jpeg: bytes | None) -> int:
    return len(jpeg) if jpeg else FAILED_BYTES
