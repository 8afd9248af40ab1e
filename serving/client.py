"""A client of EmbArk: keys in, one matrix out."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from encoders.matrix import unpack
from serving.embark_pb2 import LookupReply, LookupRequest
from serving.embark_pb2_grpc import EmbArkStub
from serving.limits import MAX_REPLY_BYTES, MAX_REQUEST_BYTES

TIMEOUT_SECONDS = 10.0


class ClientError(Exception):
    """A look-up was not answered; of this very class where EmbArk itself failed, and its log says why."""


class ViewUnknown(ClientError):
    """No such view; the message lists those that there are."""


class LookupRefused(ClientError):
    """The request is not allowed: too many keys, or too many bytes."""


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


class EmbArkClient:
    """Calls an EmbArk; safe to share between threads.

    Args:
        address: `host:port`, or anything that gRPC resolves.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
                ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
                ("grpc.enable_http_proxy", 0),  # EmbArk is ours: never behind the proxy that the environment names
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2000),  # 2 minutes by default: too late to see that it is back
            ],
        )
        self._stub = EmbArkStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def lookup(self, view: str, keys: Sequence[str], timeout: float = TIMEOUT_SECONDS) -> Answer:
        """The embeddings of `keys` (URLs or texts) in `view`; `timeout` in seconds.

        Raises:
            ViewUnknown, LookupRefused, EmbArkUnavailable, ClientError: see there.
        """
        try:
            reply: LookupReply = self._stub.Lookup(LookupRequest(view=view, keys=keys), timeout=timeout)
        except grpc.RpcError as error:
            raise self._translated(error, timeout) from error
        except UnicodeEncodeError as error:
            raise LookupRefused(f"a key is no valid Unicode text: {error}") from error
        return Answer(
            vectors=unpack(reply.vectors),
            status=np.frombuffer(reply.status, dtype=np.uint8),
            embedding_id=np.array(reply.embedding_id, dtype=np.int64),
            event_time=np.array(reply.event_time, dtype=np.int64),
            failures=dict(reply.failures),
            weights=reply.weights,
        )

    def _translated(self, error: grpc.RpcError, timeout: float) -> ClientError:
        code, detail = error.code(), error.details()
        if code == grpc.StatusCode.NOT_FOUND:
            return ViewUnknown(detail)
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
            return LookupRefused(detail)
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return EmbArkUnavailable(f"EmbArk at {self._address} did not answer within {timeout:g} s")
        if code == grpc.StatusCode.UNAVAILABLE:
            return EmbArkUnavailable(
                f"EmbArk does not answer at {self._address} ({code.name}): start it with `embark serve`"
            )
        return ClientError(f"EmbArk at {self._address} failed ({code.name}): {detail}")
