"""The encoders that a process holds: each loaded on first use, the least recently used let go where memory is short."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from encoders.encoder import Encoder
from encoders.spec import EncoderSpec, SpecError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """An encoder that is loaded, or being loaded."""

    view: str
    load: asyncio.Task[Encoder]
    users: int = 0
    used_at: float = 0.0  # monotonic seconds
    bytes: int = 0  # of its parameters; 0 until it is loaded


class LoadedEncoders:
    """Encoders by fingerprint: each is loaded on first use, off the event loop, one at a time, and kept.

    A load goes on when the caller who began it is gone: the next one finds it further. A failed one is forgotten, so
    that the next caller tries again.

    What is in use is never let go, so more than the budget may be held for a while; and while an encoder is loaded, it
    is there beside those that then go for it: how large it is, is known only then.

    Args:
        load: spec → encoder; raises as `load_encoder` does.
        budget: bytes of parameters to hold; 0: no limit.
        size: an encoder's bytes of parameters.
    """

    def __init__(
        self,
        load: Callable[[EncoderSpec], Encoder],
        *,
        budget: int = 0,
        size: Callable[[Encoder], int] = lambda encoder: 0,
    ) -> None:
        self._load = load
        self._budget = budget
        self._size = size
        self._held: dict[str, _Held] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")

    @property
    def count(self) -> int:
        """Encoders that are loaded."""
        return sum(held.load.done() for held in self._held.values())

    @property
    def bytes(self) -> int:
        """Of all their parameters."""
        return sum(held.bytes for held in self._held.values())

    def is_loaded(self, spec: EncoderSpec) -> bool:
        held = self._held.get(spec.fingerprint)
        return held is not None and held.load.done()

    @asynccontextmanager
    async def using(self, spec: EncoderSpec) -> AsyncIterator[Encoder]:
        """The encoder of a spec, which stays loaded within the block.

        Raises:
            WeightsUnavailable: its weights cannot be had; try again later.
            SpecError: they are not those that were pinned, or do not fit.
        """
        held = self._held.get(spec.fingerprint)
        if held is None:
            held = _Held(spec.view, asyncio.create_task(self._load_pinned(spec)))
            self._held[spec.fingerprint] = held
            held.load.add_done_callback(lambda load: self._settle(spec.fingerprint, held))
        held.users += 1
        held.used_at = time.monotonic()
        try:
            yield await asyncio.shield(held.load)
        finally:
            held.users -= 1
            held.used_at = time.monotonic()
            self._make_room()

    def close(self) -> None:
        """Waits for a load that is under way; encoders stay usable."""
        self._thread.shutdown()

    async def _load_pinned(self, spec: EncoderSpec) -> Encoder:
        encoder = await asyncio.get_running_loop().run_in_executor(self._thread, self._load, spec)
        if encoder.spec.fingerprint != spec.fingerprint:
            raise SpecError(
                f"encoder {spec.view!r}: the weights are {encoder.spec.pinned!r} now, {spec.pinned!r} was pinned: "
                f"put the old file back, or declare version v{int(spec.version[1:]) + 1} with the new one"
            )
        return encoder

    def _settle(self, fingerprint: str, held: _Held) -> None:
        if held.load.cancelled() or held.load.exception() is not None:
            self._held.pop(fingerprint, None)
            return
        held.bytes = self._size(held.load.result())
        held.used_at = time.monotonic()
        logger.info("%s is loaded: %d encoders, %.0f MB", held.view, self.count, self.bytes / 1e6)
        self._make_room()

    def _make_room(self) -> None:
        """Lets go what was not used for longest, until the rest is within the budget."""
        while self._budget and self.bytes > self._budget:
            newest = max(held.used_at for held in self._held.values())
            idle = {
                fingerprint: held
                for fingerprint, held in self._held.items()
                # the newest stays, however large: loading it anew for each call would help nobody
                if held.load.done() and not held.users and held.used_at < newest
            }
            if not idle:
                return
            fingerprint = min(idle, key=lambda each: idle[each].used_at)
            logger.info("%s is unloaded, for memory", self._held.pop(fingerprint).view)
