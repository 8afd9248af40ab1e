"""A web server for a small catalogue of real photographs, and for URLs that must fail: what the demo looks up."""

import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast

from training.photographs import photographs

IDLE_SECONDS = 5.0  # after which a connection without a request is dropped: closing waits for it


class PortTaken(OSError):
    """The port that was asked for is in use, or may not be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """A key that cannot be embedded, and the reason that is to be found."""

    url: str
    title: str
    reason: str


class PhotographServer:
    """A web server on loopback with the catalogue and some URLs that must fail; serves while it is in its context.

    `/photographs/<name>.jpg` is a picture, `/flaky/<name>.jpg` is one that answers 503 the first time, `/missing/…` is
    404, `/page/…` a web page that says it were a picture, `/truncated/…` half a picture, `/private/…` a redirect to a
    private address.

    Args:
        port: to listen on; 0 takes a free one.

    Raises:
        PortTaken: the port cannot be listened on.
    """

    def __init__(self, port: int = 0) -> None:
        jpegs = {f"{photograph.name}.jpg": photograph.jpeg for photograph in photographs()}
        try:
            self._site = _Site(port, jpegs)
        except OSError as error:
            raise PortTaken(f"cannot serve on port {port} of 127.0.0.1: {error.strerror}; choose another") from error
        self._thread = threading.Thread(target=self._site.serve_forever, args=(0.05,), name="photographs", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._site.shutdown()
        self._thread.join()
        self._site.server_close()

    @property
    def base(self) -> str:
        """The URL before every path, without a slash at its end."""
        return f"http://127.0.0.1:{self._site.server_port}"

    @property
    def requests(self) -> Counter[str]:
        """Path → how often it was asked for until now."""
        return self._site.requests()

    @property
    def urls(self) -> dict[str, str]:
        """Name of each photograph → its URL."""
        return {p.name: f"{self.base}/photographs/{p.name}.jpg" for p in photographs()}

    @property
    def flaky_url(self) -> str:
        """A photograph that is there only when it is asked for again."""
        return f"{self.base}/flaky/cat.jpg"

    def planted(self) -> list[Planted]:
        """Keys that cannot be embedded, and why."""
        return [
            Planted(url=f"{self.base}/missing/gone.jpg", title="A picture that is gone", reason="NotFound"),
            Planted(url=f"{self.base}/page/login.jpg", title="A web page, no picture", reason="DecodeError"),
            Planted(url=f"{self.base}/truncated/half.jpg", title="Half a picture", reason="DecodeError"),
            Planted(url=f"{self.base}/private/inside.jpg", title="A redirect to a private address", reason="Blocked"),
            Planted(url="not-a-url", title="No URL at all", reason="KeyRefused"),
        ]


class _Site(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for answers on their way, and no socket is left open
    request_queue_size = 128  # Retina downloads a batch at once; beyond the queue a connection waits for a second

    def __init__(self, port: int, jpegs: Mapping[str, bytes]) -> None:
        self.jpegs = jpegs
        self._requests: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def count(self, path: str) -> int:
        """How often `path` has been asked for, this time included."""
        with self._lock:
            self._requests[path] += 1
            return self._requests[path]

    def requests(self) -> Counter[str]:
        with self._lock:
            return self._requests.copy()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may have had enough
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        site = cast(_Site, self.server)
        path = self.path.partition("?")[0]
        times = site.count(path)
        folder, _, name = path.removeprefix("/").partition("/")
        picture = site.jpegs.get(name)
        if folder == "page":
            self._answer(200, b"<!doctype html><title>Log in</title><p>Log in to see this picture.")
        elif folder == "truncated":
            jpeg = site.jpegs["temple.jpg"]
            self._answer(200, jpeg[: len(jpeg) // 2])
        elif folder == "private":
            self._answer(302, b"", location="http://10.0.0.1/inside.jpg")
        elif folder == "flaky" and picture:
            self._answer(503 if times == 1 else 200, picture)
        elif folder == "photographs" and picture:
            self._answer(200, picture)
        else:
            self._answer(404, b"gone")

    def _answer(self, status: int, body: bytes, *, location: str | None = None) -> None:
        self.send_response(status)
        if location is not None:
            self.send_header("Location", location)
        self.send_header("Content-Type", "image/jpeg")  # whatever it is: a type is a claim, Retina looks at the bytes
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the demo tells what happens."""
