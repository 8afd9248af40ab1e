"""What both clients give back, and what they raise.

ClientError              EmbArk itself failed, and its log says why
├── ViewUnknown          no such view or feature service; the message lists those that there are
├── LookupRefused        the request is not allowed: too many keys, too many bytes, arguments that contradict each other
│   ├── NotAllowed       no token, or one that may not do this
│   └── EmbArkOverloaded there is no room now, or not for this caller: later again
└── EmbArkUnavailable    nothing answers at the address, or not in time
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import grpc
import numpy as np
from numpy.typing import NDArray

from serving.embark_pb2 import FLOAT16, FLOAT32, LookupReply
from serving.layouts import BYTE, FLOAT, WORD, Familiar, numbers
from serving.packing import parsed, unpacked

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "float16"]
FAMILIAR = Familiar()  # of all clients of the process: it depends on what is read alone
PRECISIONS: Mapping[Precision, Any] = {"float32": FLOAT32, "float16": FLOAT16}


class ClientError(Exception):
    """A look-up was not answered; of this very class where EmbArk itself failed, and its log says why."""


class ViewUnknown(ClientError):
    """No such view or feature service; the message lists those that there are."""


class LookupRefused(ClientError):
    """The request is not allowed: too many keys, or too many bytes."""


class NotAllowed(LookupRefused):
    """No token, one that is not known, or one that may not do this."""


class EmbArkOverloaded(LookupRefused):
    """There is no room now, or not for this caller: later again."""


class EmbArkUnavailable(ClientError):
    """Nothing answers at the address, or not in time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer for N keys, in their order."""

    vectors: NDArray[np.float32]  # (N, dim), read-only; the OOV embedding where status is not HIT
    status: NDArray[np.uint8]  # (N,) of feature_repo.embeddings.Status
    embedding_id: NDArray[np.int64]  # (N,) log it with the impression
    event_time: NDArray[np.int64]  # (N,) microseconds since 1970
    failures: dict[int, str]  # position of a FAILED key → why
    weights: str  # what the encoder was pinned to; seeded:<n> is not pretrained

    def torch(self) -> "torch.Tensor":
        """The vectors as a tensor of its own, (N, dim) float32.

        Raises:
            ImportError: torch is not installed.
        """
        import torch

        return torch.from_numpy(self.vectors.copy())  # a tensor of read-only memory would be written to all the same

    @classmethod
    def of(cls, reply: bytes) -> "Answer":
        """The answer in a serialized `LookupReply`."""
        known = FAMILIAR.of(reply)
        if known is not None:
            return cls(
                vectors=numbers(reply, known.vectors, FLOAT).reshape(known.shape),
                status=numbers(reply, known.status, BYTE),
                embedding_id=numbers(reply, known.ids, WORD).astype(np.int64),
                event_time=numbers(reply, known.times, WORD).astype(np.int64),
                failures={},
                weights=known.weights,
            )
        vectors, others = parsed(reply)
        FAMILIAR.meet(reply, vectors.shape, others.weights, others.first)
        return cls._made(vectors, others)

    @classmethod
    def of_message(cls, reply: LookupReply) -> "Answer":
        """The answer in a message."""
        return cls._made(unpacked(reply.vectors), reply)

    @classmethod
    def _made(cls, vectors: NDArray[np.float32], reply: LookupReply) -> "Answer":
        return cls(
            vectors=vectors,
            status=np.frombuffer(reply.status, dtype=np.uint8),
            embedding_id=np.array(reply.embedding_id, dtype=np.int64),
            event_time=np.array(reply.event_time, dtype=np.int64),
            failures=dict(reply.failures),
            weights=reply.weights,
        )


def translated(error: grpc.RpcError, address: object, timeout: float) -> ClientError:
    """Ours for gRPC's error of a call that was given `timeout` seconds."""
    code, detail = error.code(), error.details() or ""
    if code == grpc.StatusCode.NOT_FOUND:
        return ViewUnknown(detail)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return NotAllowed(detail)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return LookupRefused(detail)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC uses the code of a lack of room for a message that is too large, too.
        return LookupRefused(detail) if "larger than max" in detail else EmbArkOverloaded(detail)
    if code == grpc.StatusCode.CANCELLED and detail == "CANCELLED":
        # What gRPC's server says of calls beyond those that may wait, here after several tries. Of a channel that was
        # closed it says so.
        return EmbArkOverloaded(f"EmbArk at {address} has more calls than it can look at: again later")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return EmbArkUnavailable(f"EmbArk at {address} did not answer within {timeout:g} s")
    if code == grpc.StatusCode.UNAVAILABLE:
        return EmbArkUnavailable(f"EmbArk does not answer at {address} ({code.name}): start it with `embark serve`")
    return ClientError(f"EmbArk at {address} failed ({code.name}): {detail}")
