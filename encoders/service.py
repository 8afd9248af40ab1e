"""Retina's service: `retina.proto` on grpc.aio."""

import errno
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import NoReturn, Self

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from encoders.batching import MAX_BATCH, Batches, Embedded
from encoders.client import MAX_KEYS, MAX_MESSAGE_BYTES
from encoders.compute import choose_device
from encoders.encoder import Encoder
from encoders.fetch import Fetcher
from encoders.keys import KeyRefused, canonical_key
from encoders.loading import LoadedEncoders, load_encoder
from encoders.matrix import pack
from encoders.retina_pb2 import EncodeReply, EncodeRequest, EncodersReply, EncodersRequest, Outcome
from encoders.retina_pb2_grpc import add_RetinaServicer_to_server
from encoders.spec import EncoderSpec, SpecError
from encoders.weights import WeightsUnavailable

logger = logging.getLogger(__name__)

MAX_KEYS_AT_HAND = 4096  # of all calls: at 100 images/s, more would wait longer than any caller does
GRACE_SECONDS = 20.0  # > a download's 10 s and the batches after it
SERVICE = "embark.v1.Retina"


class RetinaService:
    """Embeds keys of the registered encoders; belongs to one event loop.

    Args:
        registered: the encoders in the registry by view, as they are now; kept fresh by its owner.
        fetcher: downloads images; closed by its owner.
        device: where networks compute, as of `choose_device`.
        max_keys: of one call.
        max_batch: inputs of one forward pass.
        max_keys_at_hand: of all calls; what is beyond is answered RESOURCE_EXHAUSTED.
        load: spec → encoder; `load_encoder` unless another is given.

    Raises:
        DeviceUnavailable: this machine has no such device.
    """

    def __init__(
        self,
        *,
        registered: Callable[[], Mapping[str, EncoderSpec]],
        fetcher: Fetcher,
        device: str = "auto",
        max_keys: int = MAX_KEYS,
        max_batch: int = MAX_BATCH,
        max_keys_at_hand: int = MAX_KEYS_AT_HAND,
        load: Callable[[EncoderSpec], Encoder] | None = None,
    ) -> None:
        self._device = str(choose_device(device))
        self._registered = registered
        self._loaded = LoadedEncoders(load or partial(load_encoder, device=self._device))
        self._batches = Batches(fetcher, max_batch=max_batch)
        self._max_keys = max_keys
        self._max_keys_at_hand = max_keys_at_hand
        self.keys_at_hand = 0

    async def Encode(self, request: EncodeRequest, context: grpc.aio.ServicerContext) -> EncodeReply:
        """See `retina.proto`; UNAVAILABLE where weights cannot be had.

        They may be had a minute later, or by another Retina, so the caller is to wait. Weights that are not those which
        were pinned are FAILED_PRECONDITION: waiting does not help, somebody must act.
        """
        # 1. what concerns the whole
        spec = await self._admitted(request, context)
        began = time.monotonic()
        self.keys_at_hand += len(request.keys)
        try:
            # 2. the encoder, loaded on first use
            try:
                encoder = await self._loaded.get(spec)
            except WeightsUnavailable as error:
                await _abort(context, grpc.StatusCode.UNAVAILABLE, str(error))
            except SpecError as error:
                await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
            # 3. canonical keys; those that can name no input are refused one by one
            keys = [_canonical(spec, key) for key in request.keys]
            # 4. download, decode, compute; a key that stands there twice is embedded once
            embedded = await self._batches.embed(encoder, [key for key in keys if isinstance(key, str)])
        finally:
            self.keys_at_hand -= len(request.keys)
        # 5. one outcome a key, in the order of the request
        outcomes = [_refused(key) if isinstance(key, KeyRefused) else _outcome(embedded[key]) for key in keys]
        vectors = [each.vector for key in keys if isinstance(key, str) and (each := embedded[key]).vector is not None]
        logger.info("%s: %d of %d embedded in %.2f s", spec.view, len(vectors), len(keys), time.monotonic() - began)
        return EncodeReply(
            fingerprint=encoder.spec.fingerprint,
            vectors=pack(np.stack(vectors) if vectors else np.zeros((0, spec.dim), dtype=np.float32)),
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

    def close(self) -> None:
        """Ends the threads, once they have done what they have at hand."""
        self._loaded.close()
        self._batches.close()

    async def _admitted(self, request: EncodeRequest, context: grpc.aio.ServicerContext) -> EncoderSpec:
        registered = self._registered()
        spec = registered.get(request.view)
        if spec is None:
            known = ", ".join(registered) or "none"
            await _abort(context, grpc.StatusCode.NOT_FOUND, f"unknown view {request.view!r}; known are: {known}")
        if request.fingerprint not in ("", spec.fingerprint):
            await _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{spec.view} has fingerprint {spec.fingerprint} here, not {request.fingerprint}",
            )
        if len(request.keys) > self._max_keys:
            await _abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{len(request.keys)} keys, {self._max_keys} are allowed in a call",
            )
        # A call that comes alone is never too much, whatever the limits are.
        if self.keys_at_hand and self.keys_at_hand + len(request.keys) > self._max_keys_at_hand:
            await _abort(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.keys_at_hand} keys are at hand, {self._max_keys_at_hand} are allowed: try again in a second",
            )
        return spec


async def _abort(context: grpc.aio.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    await context.abort(code, details)
    raise AssertionError("abort raises")


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


class RetinaServer:
    """A server of one service, with gRPC's health service: it serves while it is in its context.

    Leaving the context refuses new calls at once, gives those at hand `grace` seconds, then cancels them.

    Args:
        service: what answers; closed at the end.
        address: `host:port` to listen on; port 0 takes a free one, found in `port`.
        grace: seconds.
    """

    def __init__(self, service: RetinaService, address: str, *, grace: float = GRACE_SECONDS) -> None:
        self._service = service
        self._address = address
        self._grace = grace
        self._health = health.aio.HealthServicer()
        self.port = 0

    async def __aenter__(self) -> Self:
        """Listens.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # a second Retina on the port is an error, not a share of the calls
            ]
        )
        add_RetinaServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(errno.EADDRINUSE, f"Retina cannot listen on {self._address}") from error
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._grace)
        self._service.close()
