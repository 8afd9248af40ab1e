"""HTTP/1.1 on one connection: a request, and its answer as it comes, parsed by llhttp (Node's parser).

Bytes are judged where they arrive, within the event loop's own call: a download is one wait, not one for each piece.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpResponseParser

from encoders.encoder import TooLarge

MAX_BESIDE = 64 << 10  # bytes in a row that are no content: headers, trailers, what stands between chunks
OVERFLOW = "Content-Length overflow"  # llhttp's words where a length has more than 64 bits
SWITCHING_PROTOCOLS = 101  # the one of 1xx after which no other answer comes


class BadAnswer(Exception):
    """What came is no HTTP/1.1, or ended early."""


class HungUp(BadAnswer):
    """The other end closed the connection before a single byte of an answer came."""


class Answer(Protocol):
    """Who is told of an answer. Each may raise; that ends it."""

    def begins(self, status: int, fields: Mapping[bytes, bytes]) -> bool:
        """Whether the content is wanted; names of fields in lower case."""
        ...

    def comes(self, content: bytes) -> None:
        """A piece of the content."""
        ...


class Connection(asyncio.Protocol):
    """A connection to a web server, for one request at a time.

    Attributes:
        usable: whether another request may be sent. Not after an answer that was not read to its end, nor where the
            other end has hung up or said something unasked.
        idle_since: seconds of the event loop's clock; kept by `Connections`.
    """

    def __init__(self) -> None:
        self.usable = False
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._done.set_result(None)

    async def ask(self, request: bytes, answer: Answer, seconds: float) -> None:
        """Sends a request; returns when its answer has come, or the content is not wanted.

        Args:
            request: whole, without a content.
            answer: told of what comes.
            seconds: without a byte.

        Raises:
            BadAnswer, TooLarge, TimeoutError, OSError, and what `answer` raises.
        """
        self._answer = answer
        self._parser = HttpResponseParser(self)
        self._fields: dict[bytes, bytes] = {}
        self._begun = self._interim = self._until_closed = False
        self._beside = 0
        self._heard: float | None = None
        self._done = self._loop.create_future()
        self._transport.write(request)
        self._wait(self._loop.time(), seconds)
        try:
            await self._done
        except BaseException:
            self.close()
            raise
        finally:
            self._silence.cancel()

    def close(self) -> None:
        """At once; whoever waits for an answer is told."""
        self.usable = False
        self._transport.abort()

    def _wait(self, since: float, seconds: float) -> None:
        left = since + seconds - self._loop.time()
        if left > 0:
            self._silence = self._loop.call_later(left, lambda: self._wait(self._heard or since, seconds))
        else:
            self._end(TimeoutError(f"no byte in {seconds:g} s"))

    def _end(self, error: BaseException | None = None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    # ── what the event loop tells ────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if self._done.done():
            self.close()  # nothing was asked
            return
        self._heard = self._loop.time()
        self._beside += len(data)
        try:
            self._parser.feed_data(data)
            if self._beside > MAX_BESIDE:
                raise BadAnswer(f"{self._beside} bytes came without any content, {MAX_BESIDE} are allowed")
        except HttpParserCallbackError as error:
            self._failed(error.__context__ or error)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._failed((TooLarge if str(error) == OVERFLOW else BadAnswer)(str(error)))
        except BadAnswer as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.usable = False  # also where the answer was complete, and more came behind it
        self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._done.done():
            return
        if exc is None and self._until_closed:
            self._end()
        elif self._heard is None:
            self._end(HungUp("the server hung up" + (f": {exc}" if exc else "")))
        else:
            self._end(exc or BadAnswer("the answer ended early"))

    # ── what the parser tells ────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self._done.done():
            raise BadAnswer("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._begun:  # what comes behind the content concerns nobody
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200 and status != SWITCHING_PROTOCOLS
        if self._interim:
            self._fields.clear()
            return
        self._begun = True
        encoding = self._fields.get(b"transfer-encoding")
        if encoding is not None and encoding.lower() != b"chunked":
            raise BadAnswer(f"Transfer-Encoding {encoding[:80].decode('latin-1')!r} is not supported")
        self._until_closed = encoding is None and b"content-length" not in self._fields
        if not self._answer.begins(status, self._fields):
            self.usable = False
            self._end()

    def on_body(self, content: bytes) -> None:
        self._beside = 0
        if not self._done.done():
            self._answer.comes(content)

    def on_message_complete(self) -> None:
        if not self._interim:
            self.usable = self.usable and self._parser.should_keep_alive()
            self._end()
