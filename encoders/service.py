"""Retina's service: `retina.proto` on grpc.aio."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NoReturn

import grpc
import numpy as np

from encoders.batching import Batches, Embedded, Source
from encoders.client import MAX_KEYS, RETRY_AFTER
from encoders.compute import Plan, check_compiler, choose_device, compile_encoder, encoder_bytes
from encoders.encoder import Encoder
from encoders.fetch import PER_HOST
from encoders.keys import KeyRefused, canonical_key
from encoders.line import TooLate
from encoders.loaded import LoadedEncoders
from encoders.loading import load_encoder
from encoders.matrix import pack
from encoders.metrics import RetinaMetrics
from encoders.retina_pb2 import EncodeReply, EncodeRequest, EncodersReply, EncodersRequest, Outcome
from encoders.spec import EncoderSpec, SpecError
from encoders.traces import NO_TRACES, Traces
from encoders.weights import WeightsUnavailable

logger = logging.getLogger(__name__)

MAX_KEYS_AT_HAND = 4096  # of all calls: at 100 images/s, more would wait longer than any caller does
RETRY_SECONDS = (0.1, 10.0)  # least and most that a busy Retina asks its callers to wait


class RetinaService:
    """Embeds keys of the registered encoders; belongs to one event loop.

    Args:
        registered: the encoders in the registry by view, as they are now; kept fresh by its owner.
        fetcher: downloads images; closed by its owner.
        device: where networks compute, as of `choose_device`.
        max_keys: of one call.
        max_keys_at_hand: of all calls; what is beyond is answered RESOURCE_EXHAUSTED.
        max_batch: inputs of one pass; what `Plan` has for the device unless given.
        max_age: seconds for which an input waits for others to share its pass; what `Plan` has unless given.
        cores: that this process may use; all of the machine's unless given.
        memory: bytes of encoders' parameters to hold; 0: no limit.
        compiled: whether torch compiles the networks.
        per_host: downloads at a time from one host, as the fetcher has it.
        load: spec → encoder; `load_encoder` unless another is given.
        metrics: told of what happens.

    Raises:
        DeviceUnavailable: this machine has no such device, or cannot compile for it.
    """

    def __init__(
        self,
        *,
        registered: Callable[[], Mapping[str, EncoderSpec]],
        fetcher: Source,
        device: str = "auto",
        max_keys: int = MAX_KEYS,
        max_keys_at_hand: int = MAX_KEYS_AT_HAND,
        max_batch: int | None = None,
        max_age: float | None = None,
        cores: int | None = None,
        memory: int = 0,
        compiled: bool = False,
        per_host: int = PER_HOST,
        load: Callable[[EncoderSpec], Encoder] | None = None,
        metrics: RetinaMetrics | None = None,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._traces = traces
        chosen = choose_device(device)
        if compiled:
            check_compiler(chosen)
        plan = Plan.of(chosen.type, cores)
        if max_batch is not None:
            plan = replace(plan, images=max_batch, texts=max_batch)
        if max_age is not None:
            plan = replace(plan, age=max_age)
        self._device = str(chosen)
        self._registered = registered
        self._metrics = metrics or RetinaMetrics()
        self._loaded = LoadedEncoders(
            partial(_loaded, load or partial(load_encoder, device=self._device), compiled),
            budget=memory,
            size=encoder_bytes,
        )
        self._batches = Batches(fetcher, plan=plan, per_host=per_host, metrics=self._metrics)
        self._max_keys = max_keys
        self._max_keys_at_hand = max_keys_at_hand
        self._at_hand: Counter[str] = Counter()  # fingerprint → keys
        self._metrics.encoders.set_function(lambda: self._loaded.count)
        self._metrics.encoder_bytes.set_function(lambda: self._loaded.bytes)

    @property
    def keys_at_hand(self) -> int:
        """Keys of all calls that are not answered yet."""
        return self._at_hand.total()

    async def Encode(self, request: EncodeRequest, context: grpc.aio.ServicerContext) -> EncodeReply:
        """See `retina.proto`; UNAVAILABLE where weights cannot be had.

        They may be had a minute later, or by another Retina, so the caller is to wait. Weights that are not those which
        were pinned are FAILED_PRECONDITION: waiting does not help, somebody must act.
        """
        came_with = [context.invocation_metadata() or ()]
        with self._traces.span("Retina/Encode", came_with, view=request.view, keys=len(request.keys)):
            return await self._encoded(request, context)

    async def _encoded(self, request: EncodeRequest, context: grpc.aio.ServicerContext) -> EncodeReply:
        # 1. what concerns the whole
        spec = await self._admitted(request, context)
        began = time.monotonic()
        left = context.time_remaining()
        deadline = math.inf if left is None else asyncio.get_running_loop().time() + left
        with self._taken(spec, len(request.keys)):
            # 2. canonical keys; those that can name no input are refused one by one
            keys = [_canonical(spec, key) for key in request.keys]
            try:
                # 3. the encoder, loaded on first use
                async with self._loaded.using(spec) as encoder:
                    # 4. download, decode, compute, in passes shared with other calls; a twin is embedded once
                    embedded = await self._batches.embed(
                        encoder, [key for key in keys if isinstance(key, str)], deadline
                    )
            except WeightsUnavailable as error:
                await self._refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
            except SpecError as error:
                await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
            except TooLate as error:
                await self._refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, str(error))
        # 5. one outcome a key, in the order of the request
        outcomes = [_refused(key) if isinstance(key, KeyRefused) else _outcome(embedded[key]) for key in keys]
        vectors = [each.vector for key in keys if isinstance(key, str) and (each := embedded[key]).vector is not None]
        self._metrics.of(spec.view).embedded.inc(len(vectors))
        for reason, count in Counter(outcome.reason for outcome in outcomes if outcome.reason).items():
            self._metrics.keys.labels(spec.view, reason).inc(count)
        logger.info("%s: %d of %d embedded in %.2f s", spec.view, len(vectors), len(keys), time.monotonic() - began)
        return EncodeReply(
            fingerprint=encoder.spec.fingerprint,
            vectors=pack(np.array(vectors, dtype=np.float32).reshape(-1, spec.dim)),
            outcomes=outcomes,
        )

    async def Encoders(self, request: EncodersRequest, context: grpc.aio.ServicerContext) -> EncodersReply:
        """See `retina.proto`."""
        return EncodersReply(
            encoders=[
                EncodersReply.Encoder(
                    view=spec.view,
                    fingerprint=spec.fingerprint,
                    weights=spec.pinned,
                    loaded=self._loaded.is_loaded(spec),
                    device=self._device,
                    dim=spec.dim,
                )
                for spec in self._registered().values()
            ]
        )

    async def warm(self, views: Iterable[str]) -> None:
        """Loads encoders and runs a pass of one input and one of a full batch through each: what is compiled, tuned or
        allocated on first use is so now.

        Raises:
            SpecError: a view that is not registered, or weights that are not those which were pinned.
            WeightsUnavailable: weights that cannot be had now.
            EncodeError: the network fails.
        """
        for view in views:
            registered = self._registered()
            spec = registered.get(view)
            if spec is None:
                raise SpecError(f"cannot warm view {view!r}: registered are {', '.join(registered) or 'none'}")
            began = time.monotonic()
            async with self._loaded.using(spec) as encoder:
                await self._batches.warm(encoder)
            logger.info("%s is warm after %.1f s", view, time.monotonic() - began)

    def close(self) -> None:
        """Ends the threads, once they have done what they have at hand."""
        self._loaded.close()
        self._batches.close()

    @contextmanager
    def _taken(self, spec: EncoderSpec, count: int) -> Iterator[None]:
        self._at_hand[spec.fingerprint] += count
        self._metrics.keys_at_hand.set(self.keys_at_hand)
        try:
            yield
        finally:
            self._at_hand[spec.fingerprint] -= count
            self._metrics.keys_at_hand.set(self.keys_at_hand)

    async def _admitted(self, request: EncodeRequest, context: grpc.aio.ServicerContext) -> EncoderSpec:
        registered = self._registered()
        spec = registered.get(request.view)
        if spec is None:
            known = ", ".join(registered) or "none"
            await self._refuse(context, grpc.StatusCode.NOT_FOUND, f"unknown view {request.view!r}; known are: {known}")
        if request.fingerprint not in ("", spec.fingerprint):
            await self._refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{spec.view} has fingerprint {spec.fingerprint} here, not {request.fingerprint}",
            )
        if len(request.keys) > self._max_keys:
            await self._refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{len(request.keys)} keys, {self._max_keys} are allowed in a call",
            )
        # A call that comes alone is never too much, whatever the limits are.
        at_hand = self.keys_at_hand
        if not at_hand:
            return spec
        queue_seconds = self._batches.seconds(self._at_hand)
        excess = at_hand + len(request.keys) - self._max_keys_at_hand
        if excess > 0:
            await self._refuse_as_busy(
                context,
                f"{at_hand} keys are at hand, {self._max_keys_at_hand} are allowed",
                queue_seconds * min(1.0, excess / at_hand),
            )
        left = context.time_remaining()
        if left is not None and queue_seconds > left:
            await self._refuse_as_busy(
                context,
                f"{at_hand} keys are at hand, which take {queue_seconds:.1f} s, and the call has {left:.1f} s left",
                queue_seconds - left,
            )
        return spec

    async def _refuse_as_busy(self, context: grpc.aio.ServicerContext, why: str, seconds: float) -> NoReturn:
        least, most = RETRY_SECONDS
        wait = min(max(seconds, least), most)
        hint = ((RETRY_AFTER, str(round(1000 * wait))),)
        details = f"{why}: try again in {wait:.1f} s"
        await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, details, hint)

    async def _refuse(
        self,
        context: grpc.aio.ServicerContext,
        code: grpc.StatusCode,
        details: str,
        hint: tuple[tuple[str, str], ...] = (),
    ) -> NoReturn:
        self._metrics.rejected.labels(code.name).inc()
        await context.abort(code, details, hint)
        raise AssertionError("abort raises")


def _loaded(load: Callable[[EncoderSpec], Encoder], compiled: bool, spec: EncoderSpec) -> Encoder:
    encoder = load(spec)
    if compiled:
        compile_encoder(encoder)
    return encoder


def _canonical(spec: EncoderSpec, key: str) -> str | KeyRefused:
    try:
        return canonical_key(spec, key)
    except KeyRefused as refusal:
        return refusal


def _refused(refusal: KeyRefused) -> Outcome:
    return Outcome(reason=type(refusal).__name__, detail=str(refusal))


def _outcome(embedded: Embedded) -> Outcome:
    if embedded.error is None:
        return Outcome(content_hash=embedded.content_hash)
    return Outcome(
        reason=embedded.error.reason,
        detail=str(embedded.error),
        retryable=embedded.error.retryable,
        content_hash=embedded.content_hash,
    )
