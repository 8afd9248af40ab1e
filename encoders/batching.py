"""From keys to embeddings: downloads and decoding overlap the network's computing, and each input fails by itself."""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.encoder import DecodeError, EncodeError, Encoder, EncoderError

logger = logging.getLogger(__name__)

MAX_BATCH = 16  # of one forward pass: larger ones gain little on a CPU and wait longer for downloads
AT_ONCE = 32  # inputs of one call that are downloaded or decoded at a time
AT_HAND = 64  # of all calls: times the most bytes of a file, the memory that downloads take
DECODING_THREADS = min(8, os.cpu_count() or 1)


class Source(Protocol):
    """Where pictures come from: `encoders.fetch.Fetcher`."""

    async def fetch(self, url: str) -> bytes: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """What became of one input: a vector (dim,) float32, or an error."""

    vector: NDArray[np.float32] | None = None
    error: EncoderError | None = None
    content_hash: bytes = b""  # BLAKE2b, 16 bytes, of the file or text; empty where it never came


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """An input that is ready for the network."""

    key: str
    network_input: Any
    content_hash: bytes


class Batches:
    """Embeds keys in batches; one for all encoders of a process, since they share its device.

    Args:
        source: downloads images.
        max_batch: most inputs of one forward pass.
    """

    def __init__(self, source: Source, *, max_batch: int = MAX_BATCH) -> None:
        self._source = source
        self._max_batch = max_batch
        self._at_hand = asyncio.Semaphore(AT_HAND)
        self._decoding = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="compute")  # a second pass would only take turns

    def close(self) -> None:
        """Waits for what the threads have at hand."""
        self._decoding.shutdown()
        self._computing.shutdown()

    async def embed(self, encoder: Encoder, keys: Sequence[str]) -> dict[str, Embedded]:
        """What became of each canonical key. Cancelling it cancels the downloads."""
        done: dict[str, Embedded] = {}
        # Bounded, so that decoded pictures do not pile up before a slow network
        ready: asyncio.Queue[Prepared | None] = asyncio.Queue(2 * self._max_batch)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._prepare_all(encoder, dict.fromkeys(keys), ready, done))
            async for batch in self._batches(ready):
                done |= await self._compute(encoder, batch)
        return done

    async def _prepare_all(
        self,
        encoder: Encoder,
        keys: dict[str, None],
        ready: asyncio.Queue[Prepared | None],
        done: dict[str, Embedded],
    ) -> None:
        waiting = iter(keys)  # shared: each task takes the next key when it is done with one

        async def work() -> None:
            for key in waiting:
                prepared = await self._prepare(encoder, key)
                if isinstance(prepared, Prepared):
                    await ready.put(prepared)
                else:
                    done[key] = prepared

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(len(keys), AT_ONCE)):
                tasks.create_task(work())
        await ready.put(None)

    async def _prepare(self, encoder: Encoder, key: str) -> Prepared | Embedded:
        content_hash = b""
        try:
            async with self._at_hand:
                content = await self._source.fetch(key) if encoder.spec.modality == "image" else key.encode()
                content_hash = hashlib.blake2b(content, digest_size=16).digest()
                loop = asyncio.get_running_loop()
                network_input = await loop.run_in_executor(self._decoding, encoder.prepare, content)
        except EncoderError as error:
            return Embedded(error=error, content_hash=content_hash)
        except Exception as error:
            # A bug that one input brings to light: it must not fail the others of its batch.
            logger.exception("%s: %r cannot be prepared", encoder.spec.view, key)
            return Embedded(error=DecodeError(f"{type(error).__name__}: {error}"), content_hash=content_hash)
        return Prepared(key=key, network_input=network_input, content_hash=content_hash)

    async def _batches(self, ready: asyncio.Queue[Prepared | None]) -> AsyncIterator[list[Prepared]]:
        batch: list[Prepared] = []
        while (prepared := await ready.get()) is not None:
            batch.append(prepared)
            if len(batch) == self._max_batch:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _compute(self, encoder: Encoder, batch: Sequence[Prepared]) -> dict[str, Embedded]:
        loop = asyncio.get_running_loop()
        inputs = [prepared.network_input for prepared in batch]
        embedded = await loop.run_in_executor(self._computing, forward, encoder, inputs)
        return {
            prepared.key: Embedded(error=each, content_hash=prepared.content_hash)
            if isinstance(each, EncodeError)
            else Embedded(vector=each, content_hash=prepared.content_hash)
            for prepared, each in zip(batch, embedded, strict=True)
        }


def forward(encoder: Encoder, inputs: Sequence[Any]) -> list[NDArray[np.float32] | EncodeError]:
    """The vector (dim,) of each input, or why it has none.

    A pass that fails is repeated one input at a time, so that one that is too large does not fail the others. Values
    that are not finite are an `EncodeError`, and so said to be worth a retry: a device that computes nonsense is not
    the input's fault, and whoever asks bounds the number of tries.
    """
    try:
        vectors = encoder.encode(inputs)
    except EncodeError as error:
        if len(inputs) == 1:
            return [error]
        return [one for each in inputs for one in forward(encoder, [each])]
    return list(_finite(vectors))


def _finite(vectors: NDArray[np.float32]) -> Iterator[NDArray[np.float32] | EncodeError]:
    for vector in vectors:
        yield vector if np.isfinite(vector).all() else EncodeError("the network answered values that are not finite")
