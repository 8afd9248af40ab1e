"""A web server on loopback that behaves as badly as a test wants it to."""

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
CERTIFICATE = Path(__file__).with_name("pictures_example.pem")  # with its key; trusted by nobody else

Page = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Web"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        page = self.server.pages.get(path)
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # the client may have had enough
            if page is None:
                self.answer(404, b"no such page")
            elif isinstance(page, bytes):
                self.answer(200, page)
            else:
                page(self)

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class Web(ThreadingHTTPServer):
    """Serves `pages`: path → bytes, or a function that is given the handler."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, pages: dict[str, bytes | Page], *, tls: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages = pages
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()  # slow pages wait for it
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that refuses a certificate is what a test wanted."""


@contextlib.contextmanager
def serving(pages: dict[str, bytes | Page], *, tls: bool = False) -> Iterator[Web]:
    with Web(pages, tls=tls) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield web
        finally:
            web.stopping.set()
            web.shutdown()
            thread.join()


def redirect_to(location: str, status: int = 302) -> Page:
    return lambda handler: handler.answer(status, b"", Location=location)


def status(code: int) -> Page:
    return lambda handler: handler.answer(code, b"")


def silent(handler: Handler) -> None:
    handler.server.stopping.wait(20)
    handler.close_connection = True


def slow_drops(handler: Handler) -> None:
    """A byte now and then: no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.server.stopping.wait(0.02):
        handler.wfile.write(b"x")


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while not handler.server.stopping.is_set():
        handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def header_flood(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.stopping.is_set():
        handler.wfile.write(b"X-Flood: " + b"x" * 1000 + b"\r\n")


def broken_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.close_connection = True


def no_http(handler: Handler) -> None:
    handler.wfile.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
    handler.close_connection = True
