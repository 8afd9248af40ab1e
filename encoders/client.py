"""A client of Retina, for KFC. Free of torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from encoders.matrix import unpack
from encoders.retina_pb2 import EncodeReply, EncodeRequest, EncodersReply, EncodersRequest
from encoders.retina_pb2_grpc import RetinaStub

MAX_KEYS = 512  # of one call
MAX_MESSAGE_BYTES = 64 << 20  # > 512 keys x 8192 values x 4 bytes, and what stands beside them
CHANNEL = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # Retina is ours: never behind the proxy that the environment names
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),  # 2 minutes by default: too late to notice that Retina is back
]
REFUSALS = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,  # a bug there: waiting does not mend it
)


class RetinaError(Exception):
    """Retina did not embed a batch; it says nothing about any key of it."""


class RetinaAway(RetinaError):
    """Nothing answers, or not in time: try again."""


class RetinaBusy(RetinaError):
    """It has too much at hand: try again a little later."""


class RetinaRefused(RetinaError):
    """It does not embed this view, or has another version of it: the registry must be looked at first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one key; `reason` is empty where it was embedded, else an error's name."""

    reason: str = ""
    detail: str = ""
    retryable: bool = False
    content_hash: bytes = b""  # BLAKE2b, 16 bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The answer for a batch."""

    vectors: NDArray[np.float32]  # (embedded keys, dim), in the order of the keys whose outcome has no reason
    outcomes: Sequence[Outcome]  # one a key
    fingerprint: str = ""  # of the encoder that ran


class RetinaClient:
    """Calls a Retina; safe to share between threads.

    Args:
        address: `host:port`, or anything that gRPC resolves.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=CHANNEL)
        self._stub = RetinaStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        """Embeds canonical keys of one view; `timeout` in seconds.

        Raises:
            RetinaAway: nothing answers, not in time, or the weights cannot be had now.
            RetinaBusy: too much is at hand there.
            RetinaRefused: no such view, another fingerprint, or more than 512 keys.
        """
        request = EncodeRequest(view=view, fingerprint=fingerprint, keys=keys)
        try:
            reply: EncodeReply = self._stub.Encode(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self._translated(error) from error
        try:
            vectors = unpack(reply.vectors)
        except ValueError as error:
            raise RetinaRefused(f"Retina at {self._address} answers what is no matrix: {error}") from error
        return Encoded(
            vectors=vectors,
            outcomes=tuple(
                Outcome(reason=o.reason, detail=o.detail, retryable=o.retryable, content_hash=o.content_hash)
                for o in reply.outcomes
            ),
            fingerprint=reply.fingerprint,
        )

    def encoders(self, timeout: float = 5.0) -> EncodersReply:
        """The encoders that it knows, and which of them are loaded.

        Raises:
            RetinaAway: nothing answers.
        """
        try:
            reply: EncodersReply = self._stub.Encoders(EncodersRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise self._translated(error) from error
        return reply

    def _translated(self, error: grpc.RpcError) -> RetinaError:
        code, detail = error.code(), error.details()
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return RetinaBusy(f"Retina at {self._address} is busy: {detail}")
        if code in REFUSALS:
            return RetinaRefused(f"Retina at {self._address} refuses: {detail}")
        return RetinaAway(f"Retina at {self._address} does not answer ({code.name}): {detail}")


@dataclass(frozen=True, slots=True)
class MemoryRetina:
    """A Retina without networks, for tests: the embedding of a key is drawn from its hash.

    Attributes:
        dims: view → length of its embeddings.
        failures: key → the outcome that it is to have.
        calls: the batches that were asked for, view and keys.
    """

    dims: Mapping[str, int]
    failures: Mapping[str, Outcome] = field(default_factory=dict)
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        self.calls.append((view, tuple(keys)))
        outcomes = tuple(self.failures.get(k, Outcome(content_hash=content_hash(k.encode()))) for k in keys)
        embedded = [memory_vector(k, self.dims[view]) for k, o in zip(keys, outcomes, strict=True) if not o.reason]
        vectors = np.stack(embedded) if embedded else np.zeros((0, self.dims[view]), dtype=np.float32)
        return Encoded(vectors=vectors, outcomes=outcomes, fingerprint=fingerprint)


def memory_vector(key: str, dim: int) -> NDArray[np.float32]:
    """What `MemoryRetina` answers for a key, (dim,)."""
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng(seed).standard_normal(dim, dtype=np.float32)


def content_hash(content: bytes) -> bytes:
    """BLAKE2b of a file or text, 16 bytes: tells whether what lies under a key has changed."""
    return hashlib.blake2b(content, digest_size=16).digest()
