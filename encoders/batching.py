"""From keys to embeddings: downloads and decoding overlap the network's computing, and each input fails by itself.

The inputs of all calls of one encoder share passes. What bounds memory, from outside in: the keys of all calls
(`service.py`); files downloaded or being so (`FILES_AT_HAND`, times the most bytes of a file); and pictures decoded or
about to be, of an encoder (`room`, times a megabyte).
"""

import asyncio
import hashlib
import io
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from PIL import Image

from encoders.compute import Plan, compute_in_threads
from encoders.cores import Cores
from encoders.device import SharedDevice
from encoders.encoder import DecodeError, Encoder, EncoderError
from encoders.fetch import PER_HOST
from encoders.line import Group, Line, TooLate, Vector
from encoders.metrics import RetinaMetrics

logger = logging.getLogger(__name__)

FILES_AT_HAND = 64  # of all calls
MIN_ROOM = 64  # pictures of an encoder that are downloaded, decoded or ready: what covers a slow site's latency
TEXTS_AT_ONCE = 32  # are tokenized in one go: changing threads takes as long as a text does


class Source(Protocol):
    """Where pictures come from: `encoders.fetch.Fetcher`."""

    async def fetch(self, url: str) -> bytes: ...


class Embedded(NamedTuple):
    """What became of one input: a vector (dim,) float32, or an error.

    A tuple, as `Prepared` is: a frozen dataclass takes five times as long to make, and each text has one of both.
    """

    vector: Vector | None = None
    error: EncoderError | None = None
    content_hash: bytes = b""  # BLAKE2b, 16 bytes, of the file or text; empty where it never came


class Prepared(NamedTuple):
    """An input that is ready for the network, or why it cannot be."""

    network_input: Any = None
    error: EncoderError | None = None
    content_hash: bytes = b""


class Batches:
    """Embeds keys in batches; one for all encoders of a process, since they share its device.

    Args:
        source: downloads images.
        plan: of the device; the CPU's unless given.
        per_host: downloads at a time from one host, of one encoder.
        metrics: told of each stage.
    """

    def __init__(
        self,
        source: Source,
        *,
        plan: Plan | None = None,
        per_host: int = PER_HOST,
        metrics: RetinaMetrics | None = None,
    ) -> None:
        plan = plan or Plan.of("cpu")
        self._source = source
        self._per_host = per_host
        self._sizes = plan.sizes
        self._metrics = metrics or RetinaMetrics()
        self._cores = Cores(plan.shared, plan.threads)
        self._device = SharedDevice(plan, self._cores, self._metrics)
        self._room = max(MIN_ROOM, 3 * plan.images)
        self._rooms: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Semaphore] = WeakValueDictionary()
        self._files = asyncio.Semaphore(FILES_AT_HAND)
        # One thread of torch's each: what a picture takes to normalise is not worth a second core's attention
        self._decoding = ThreadPoolExecutor(
            plan.decoding, thread_name_prefix="decode", initializer=partial(compute_in_threads, 1)
        )

    def close(self) -> None:
        """Waits for what the threads have at hand."""
        self._decoding.shutdown()
        self._device.close()

    def seconds(self, keys: Mapping[str, int]) -> float:
        """What the device takes for so many keys of each encoder (by fingerprint), as far as is known."""
        return sum(n * self._device.seconds_each(each) for each, n in keys.items()) / self._device.lanes

    async def warm(self, encoder: Encoder) -> None:
        """A pass of one input and one of a full batch, and of all sizes between that a GPU computes in.

        Raises:
            EncodeError: the network fails.
        """
        prepared, _ = prepare(encoder, [_sample(encoder)])
        with self._device.line(encoder) as line:
            for count in sorted({1, line.max_batch, *(each for each in self._sizes if each < line.max_batch)}):
                group = self._submitted(line, prepared * count, math.inf)
                self._device.serve()
                for outcome in await self._embedded(line, prepared * count, group):
                    if outcome.error is not None:
                        raise outcome.error

    async def embed(self, encoder: Encoder, keys: Sequence[str], deadline: float = math.inf) -> dict[str, Embedded]:
        """What became of each canonical key. Cancelling it cancels the downloads, and takes out what waits.

        Args:
            encoder: loaded, and kept so by the caller.
            keys: those that stand there twice are embedded once.
            deadline: on the event loop's clock.

        Raises:
            TooLate: the deadline cannot be met, so the rest was not computed.
        """
        distinct = list(dict.fromkeys(keys))
        with self._device.line(encoder) as line:
            try:
                if encoder.spec.modality == "image":
                    return await self._images(line, distinct, deadline)
                if len(distinct) > TEXTS_AT_ONCE:
                    return await self._many_texts(line, distinct, deadline)
                return await self._texts(line, distinct, deadline)
            except (TooLate, ExceptionGroup) as error:
                if isinstance(error, ExceptionGroup) and error.subgroup(TooLate) is None:
                    raise
                raise TooLate(f"{encoder.spec.view}: {len(distinct)} keys cannot be embedded in time") from None

    async def _many_texts(self, line: Line, texts: Sequence[str], deadline: float) -> dict[str, Embedded]:
        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(self._texts(line, texts[start : start + TEXTS_AT_ONCE], deadline))
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
        return {text: each for part in parts for text, each in part.result().items()}

    async def _texts(self, line: Line, texts: Sequence[str], deadline: float) -> dict[str, Embedded]:
        with self._coming(line, len(texts)):
            prepared = await self._prepared(line.encoder, [text.encode() for text in texts])
            # All go into the line before the first pass begins
            group = self._submitted(line, prepared, deadline)
        return dict(zip(texts, await self._embedded(line, prepared, group), strict=True))

    async def _images(self, line: Line, urls: Sequence[str], deadline: float) -> dict[str, Embedded]:
        view = line.encoder.spec.view
        of_call = asyncio.Semaphore(self._room // 2)  # so that a large call leaves room for others
        room = self._rooms.setdefault(view, asyncio.Semaphore(self._room))
        embedded: dict[str, Embedded] = {}

        async def embed(url: str) -> None:
            # The host's turn first: who waits for a slow host must not keep what others need. The room next: who waits
            # for a slow network must not keep a file.
            host = url.partition("://")[2].partition("/")[0]
            turn = self._turns.setdefault((view, host), asyncio.Semaphore(self._per_host))
            async with of_call:
                with ExitStack() as in_room:
                    with self._coming(line, 1), ExitStack() as with_file:
                        async with turn:
                            await room.acquire()
                            in_room.callback(room.release)
                            await self._files.acquire()
                            with_file.callback(self._files.release)
                            content = await self._fetched(view, url)
                        if isinstance(content, bytes):
                            prepared = await self._prepared(line.encoder, [content])
                        else:
                            prepared = [Prepared(error=content)]
                        group = self._submitted(line, prepared, deadline)
                    del content  # the file is not kept while the network computes
                    (embedded[url],) = await self._embedded(line, prepared, group)

        async with asyncio.TaskGroup() as tasks:
            for url in urls:
                tasks.create_task(embed(url))
        return embedded

    @contextmanager
    def _coming(self, line: Line, count: int) -> Iterator[None]:
        """Inputs that a pass may wait for, and an end of the waiting: whether they came, or failed."""
        line.coming += count
        try:
            yield
        finally:
            line.coming -= count
            self._device.serve()

    async def _fetched(self, view: str, url: str) -> bytes | EncoderError:
        began = time.perf_counter()
        try:
            return await self._source.fetch(url)
        except EncoderError as error:
            return error
        except Exception as error:
            # A bug that one input brings to light: it must not fail the others of its batch.
            logger.exception("%s: %r cannot be fetched", view, url)
            return DecodeError(f"{type(error).__name__}: {error}")
        finally:
            self._metrics.of(view).fetch_seconds.observe(time.perf_counter() - began)

    async def _prepared(self, encoder: Encoder, contents: Sequence[bytes]) -> list[Prepared]:
        async with self._cores:
            loop = asyncio.get_running_loop()
            prepared, seconds = await loop.run_in_executor(self._decoding, prepare, encoder, contents)
        self._metrics.of(encoder.spec.view).decode_seconds.observe(seconds)
        return prepared

    def _submitted(self, line: Line, prepared: Sequence[Prepared], deadline: float) -> Group:
        ready = [each.network_input for each in prepared if each.error is None]
        return self._device.submit(line, ready, deadline)

    async def _embedded(self, line: Line, prepared: Sequence[Prepared], group: Group) -> list[Embedded]:
        computed = iter(await self._device.outcomes(line, group))
        return [_embedded(each, next(computed) if each.error is None else each.error) for each in prepared]


def _sample(encoder: Encoder) -> bytes:
    """A content that any encoder of its kind takes."""
    if encoder.spec.modality == "text":
        return b"warm"
    file = io.BytesIO()
    Image.new("RGB", (320, 240), (127, 127, 127)).save(file, "JPEG")
    return file.getvalue()


def _embedded(prepared: Prepared, outcome: Vector | EncoderError | None) -> Embedded:
    if isinstance(outcome, EncoderError):
        return Embedded(error=outcome, content_hash=prepared.content_hash)
    return Embedded(vector=outcome, content_hash=prepared.content_hash)


def prepare(encoder: Encoder, contents: Sequence[bytes]) -> tuple[list[Prepared], float]:
    """Each content as the network wants it, or why it cannot be; and the seconds that it took. Runs on a thread."""
    began = time.perf_counter()
    prepared = []
    for content in contents:
        content_hash = hashlib.blake2b(content, digest_size=16).digest()
        try:
            prepared.append(Prepared(network_input=encoder.prepare(content), content_hash=content_hash))
        except EncoderError as error:
            prepared.append(Prepared(error=error, content_hash=content_hash))
        except Exception as error:
            # A bug that one input brings to light: it must not fail the others of its batch.
            logger.exception("%s: %d bytes cannot be prepared", encoder.spec.view, len(content))
            refusal = DecodeError(f"{type(error).__name__}: {error}")
            prepared.append(Prepared(error=refusal, content_hash=content_hash))
    return prepared, time.perf_counter() - began
