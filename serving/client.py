"""Clients of EmbArk: keys in, one matrix out. One for threads, one for event loops."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import grpc

from serving.answers import (
    PRECISIONS,
    Answer,
    ClientError,
    EmbArkOverloaded,
    EmbArkUnavailable,
    LookupRefused,
    NotAllowed,
    Precision,
    ViewUnknown,
    translated,
)
from serving.channels import ClientTls, open_channel
from serving.embark_pb2 import AnnounceRequest, Column, LookupManyReply, LookupManyRequest, LookupRequest
from serving.embark_pb2_grpc import EmbArkStub

__all__ = [
    "Answer",
    "AsyncEmbArkClient",
    "ClientError",
    "ClientTls",
    "EmbArkClient",
    "EmbArkOverloaded",
    "EmbArkUnavailable",
    "LookupRefused",
    "NotAllowed",
    "ViewUnknown",
]

TIMEOUT_SECONDS = 10.0


class _Calls:
    """What both clients make of their arguments."""

    def __init__(
        self, address: str | Sequence[str], *, token: str | None, tls: ClientTls | None, asynchronous: bool
    ) -> None:
        self._address = address if isinstance(address, str) else ", ".join(address)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel: Any = open_channel(address, tls, asynchronous=asynchronous)
        self._stub = EmbArkStub(self._channel)
        # As of the stub, but the reply stays bytes: its vectors are not copied (`serving.packing`).
        self._lookup = self._channel.unary_unary("/embark.v1.EmbArk/Lookup", LookupRequest.SerializeToString)
        self._stream = self._channel.unary_stream("/embark.v1.EmbArk/LookupStream", LookupRequest.SerializeToString)

    @contextmanager
    def _errors(self, timeout: float) -> Iterator[None]:
        """The one place where gRPC's errors become ours."""
        try:
            yield
        except grpc.RpcError as error:
            raise translated(error, self._address, timeout) from error
        except UnicodeEncodeError as error:
            raise LookupRefused(f"a key is no valid Unicode text: {error}") from error


def _lookup(view: str, keys: Sequence[str], precision: Precision) -> LookupRequest:
    return LookupRequest(view=view, keys=keys, precision=PRECISIONS[precision])


def _many(views: str | Sequence[str], columns: Mapping[str, Sequence[str]], precision: Precision) -> LookupManyRequest:
    return LookupManyRequest(
        service=views if isinstance(views, str) else "",
        views=() if isinstance(views, str) else views,
        columns=[Column(join_key=name, keys=keys) for name, keys in columns.items()],
        precision=PRECISIONS[precision],
    )


def _answers(reply: LookupManyReply) -> dict[str, Answer]:
    return {each.view: Answer.of_message(each.reply) for each in reply.views}


def _announced(view: str, keys: Sequence[str], published_at: Sequence[int] | None, bulk: bool) -> AnnounceRequest:
    return AnnounceRequest(view=view, keys=keys, published_at=published_at or (), bulk=bulk)


class EmbArkClient(_Calls):
    """Calls an EmbArk; safe to share between threads.

    Each method raises ViewUnknown, LookupRefused, NotAllowed, EmbArkOverloaded, EmbArkUnavailable or ClientError: see
    `serving.answers`. A call whose server is gone is tried again elsewhere, within its time.

    Args:
        address: `host:port`, or anything that gRPC resolves; several are called in turn.
        token: bearer token, where the server asks for one.
        tls: None: plain text.
    """

    def __init__(self, address: str | Sequence[str], *, token: str | None = None, tls: ClientTls | None = None) -> None:
        super().__init__(address, token=token, tls=tls, asynchronous=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def lookup(
        self, view: str, keys: Sequence[str], timeout: float = TIMEOUT_SECONDS, *, precision: Precision = "float32"
    ) -> Answer:
        """The embeddings of `keys` (URLs or texts) in `view`.

        Args:
            timeout: seconds.
            precision: on the wire; float16 halves the bytes.
        """
        with self._errors(timeout):
            return Answer.of(self._lookup(_lookup(view, keys, precision), timeout=timeout, metadata=self._metadata))

    def answers(self, view: str, timeout: float = 2.0) -> bool:
        """Whether look-ups of a view are answered now: for those who have started an EmbArk."""
        try:
            self.lookup(view, [], timeout)
        except ClientError:
            return False
        return True

    def lookup_many(
        self,
        views: str | Sequence[str],
        columns: Mapping[str, Sequence[str]],
        timeout: float = TIMEOUT_SECONDS,
        *,
        precision: Precision = "float32",
    ) -> dict[str, Answer]:
        """The embeddings of several views at once, by view.

        Args:
            views: name of a feature service, or names of views.
            columns: join key (`image_url`, `text`) → keys.
            timeout, precision: see `lookup`.
        """
        with self._errors(timeout):
            request = _many(views, columns, precision)
            return _answers(self._stub.LookupMany(request, timeout=timeout, metadata=self._metadata))

    def stream(
        self, view: str, keys: Sequence[str], timeout: float = 60.0, *, precision: Precision = "float32"
    ) -> Iterator[Answer]:
        """As `lookup`, for up to 100,000 keys: answers of some hundred keys each, in the order of the keys."""
        with self._errors(timeout):
            request = _lookup(view, keys, precision)
            for reply in self._stream(request, timeout=timeout, metadata=self._metadata):
                yield Answer.of(reply)

    def announce(
        self,
        view: str,
        keys: Sequence[str],
        published_at: Sequence[int] | None = None,
        timeout: float = TIMEOUT_SECONDS,
        *,
        bulk: bool = False,
    ) -> int:
        """Says that keys exist, so that they are embedded before their first look-up; how many are asked for by it.

        Args:
            published_at: microseconds since 1970, one a key; now otherwise.
            bulk: behind what look-ups miss.
        """
        with self._errors(timeout):
            request = _announced(view, keys, published_at, bulk)
            return int(self._stub.Announce(request, timeout=timeout, metadata=self._metadata).requested)


class AsyncEmbArkClient(_Calls):
    """As `EmbArkClient`, for the event loop that runs when it is made."""

    def __init__(self, address: str | Sequence[str], *, token: str | None = None, tls: ClientTls | None = None) -> None:
        super().__init__(address, token=token, tls=tls, asynchronous=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def lookup(
        self, view: str, keys: Sequence[str], timeout: float = TIMEOUT_SECONDS, *, precision: Precision = "float32"
    ) -> Answer:
        """As of `EmbArkClient`."""
        with self._errors(timeout):
            request = _lookup(view, keys, precision)
            return Answer.of(await self._lookup(request, timeout=timeout, metadata=self._metadata))

    async def lookup_many(
        self,
        views: str | Sequence[str],
        columns: Mapping[str, Sequence[str]],
        timeout: float = TIMEOUT_SECONDS,
        *,
        precision: Precision = "float32",
    ) -> dict[str, Answer]:
        """As of `EmbArkClient`."""
        with self._errors(timeout):
            request = _many(views, columns, precision)
            return _answers(await self._stub.LookupMany(request, timeout=timeout, metadata=self._metadata))

    async def stream(
        self, view: str, keys: Sequence[str], timeout: float = 60.0, *, precision: Precision = "float32"
    ) -> AsyncIterator[Answer]:
        """As of `EmbArkClient`."""
        with self._errors(timeout):
            request = _lookup(view, keys, precision)
            async for reply in self._stream(request, timeout=timeout, metadata=self._metadata):
                yield Answer.of(reply)

    async def announce(
        self,
        view: str,
        keys: Sequence[str],
        published_at: Sequence[int] | None = None,
        timeout: float = TIMEOUT_SECONDS,
        *,
        bulk: bool = False,
    ) -> int:
        """As of `EmbArkClient`."""
        with self._errors(timeout):
            request = _announced(view, keys, published_at, bulk)
            return int((await self._stub.Announce(request, timeout=timeout, metadata=self._metadata)).requested)
