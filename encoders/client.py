"""A client of Retina, for KFC. Free of torch."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from encoders.matrix import unpack
from encoders.replicas import Replica, Replicas
from encoders.retina_pb2 import EncodeReply, EncodeRequest, EncodersReply, EncodersRequest
from encoders.traces import NO_TRACES, Traces

MAX_KEYS = 512  # of one call
RETRY_AFTER = "retry-after-ms"  # trailing metadata of RESOURCE_EXHAUSTED
REFUSALS = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,  # a bug there: waiting does not mend it
)
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # cancelled by a Retina that stops: we cancel nothing

FIRST_WAIT_SECONDS = 0.1  # before all are asked again; doubled each time
RECONNECT_SECONDS = 6.0  # > the 2 s after which gRPC tries to connect again, and a busy machine

Reply = TypeVar("Reply", EncodeReply, EncodersReply)


class RetinaError(Exception):
    """Retina did not embed a batch; it says nothing about any key of it."""


class RetinaAway(RetinaError):
    """Nothing answers, or not in time: try again."""


class RetinaBusy(RetinaError):
    """It has too much at hand: try again a little later.

    Attributes:
        retry_after: seconds after which it expects to have room; 0 where it did not say.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


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
    """Calls one or more Retinas, in turn; safe to share between threads.

    What one of them cannot do now is asked of the next, while time is left: embedding is idempotent.

    Args:
        addresses: `host:port`, separated by commas; each may be anything that gRPC resolves.
        traces: whose open span is told to Retina.

    Raises:
        ValueError: no address.
    """

    def __init__(self, addresses: str, *, traces: Traces = NO_TRACES) -> None:
        self._replicas = Replicas(addresses)
        self._traces = traces

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._replicas.close()

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        """Embeds canonical keys of one view; `timeout` in seconds, whichever and however many Retinas are asked.

        Raises:
            RetinaAway: none answers, not in time, or the weights cannot be had now.
            RetinaBusy: too much is at hand with all that answer.
            RetinaRefused: no such view, another fingerprint, or more than 512 keys.
        """
        request = EncodeRequest(view=view, fingerprint=fingerprint, keys=keys)
        told = self._traces.headers()
        replica, reply = self._asked(
            lambda replica, left: replica.stub.Encode(request, timeout=left, metadata=told), timeout
        )
        try:
            vectors = unpack(reply.vectors)
        except ValueError as error:
            raise RetinaRefused(f"Retina at {replica.address} answers what is no matrix: {error}") from error
        return Encoded(
            vectors=vectors,
            outcomes=tuple(
                Outcome(reason=o.reason, detail=o.detail, retryable=o.retryable, content_hash=o.content_hash)
                for o in reply.outcomes
            ),
            fingerprint=reply.fingerprint,
        )

    def encoders(self, timeout: float = 5.0) -> EncodersReply:
        """The encoders that it knows, and which of them are loaded; of several Retinas, what the next one says.

        Raises:
            RetinaAway: nothing answers.
        """
        reply: EncodersReply
        _, reply = self._asked(lambda replica, left: replica.stub.Encoders(EncodersRequest(), timeout=left), timeout)
        return reply

    def _asked(self, ask: Callable[[Replica, float], Reply], timeout: float) -> tuple[Replica, Reply]:
        """The first answer, and who gave it.

        Where none of several answers, they are asked again for a moment: one that has just come back is not connected
        to yet, and the others may have ended meanwhile, as in a rolling restart.
        """
        deadline = time.monotonic() + timeout
        give_up: float | None = None  # known when none has answered
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return self._asked_once(ask, deadline)
            except RetinaAway:
                now = time.monotonic()
                if give_up is None:
                    give_up = min(deadline, now + RECONNECT_SECONDS) if self._replicas.several else now
                if now + wait >= give_up:
                    raise
            time.sleep(wait)
            wait *= 2

    def _asked_once(self, ask: Callable[[Replica, float], Reply], deadline: float) -> tuple[Replica, Reply]:
        errors: list[RetinaError] = []
        for replica in self._replicas.in_turn():
            left = deadline - time.monotonic()
            if errors and left <= 0:
                break
            try:
                return replica, ask(replica, left)
            except grpc.RpcError as error:
                errors.append(_translated(replica.address, error))
                if isinstance(errors[-1], RetinaRefused):
                    break
                if error.code() in GONE:
                    self._replicas.away(replica)
        busy = [error for error in errors if isinstance(error, RetinaBusy)]
        raise min(busy, key=lambda error: error.retry_after, default=errors[-1])


def _translated(address: str, error: grpc.RpcError) -> RetinaError:
    code, detail = error.code(), error.details()
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        hint = dict(error.trailing_metadata() or ()).get(RETRY_AFTER, "0")
        return RetinaBusy(f"Retina at {address} is busy: {detail}", int(hint) / 1000)
    if code in REFUSALS:
        return RetinaRefused(f"Retina at {address} refuses: {detail}")
    return RetinaAway(f"Retina at {address} does not answer ({code.name}): {detail}")


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
