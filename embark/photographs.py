"""A small catalogue of real photographs with titles, and a web server for it: what the demo looks up.

The photographs are those inside the wheels of scikit-image and scikit-learn, and crops of them; nothing is downloaded.
"""

import io
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from PIL import Image

SIDE = 400  # pixels, the longer one
QUALITY = 90

# package, file below it, name, title
SOURCES = (
    ("skimage", "data/astronaut.png", "astronaut", "Astronaut in an orange suit before a shuttle"),
    ("skimage", "data/chelsea.png", "cat", "Tabby cat looking at the camera"),
    ("skimage", "data/coffee.png", "coffee", "Cup of coffee with a spoon on a wooden table"),
    ("skimage", "data/rocket.jpg", "rocket", "Rocket on its launch pad"),
    ("skimage", "data/hubble_deep_field.jpg", "galaxies", "Galaxies in the deep field"),
    ("skimage", "data/retina.jpg", "retina", "Retina of a human eye"),
    ("skimage", "data/motorcycle_left.png", "motorcycle", "Motorcycle in a workshop"),
    ("skimage", "data/coins.png", "coins", "Old coins in rows"),
    ("skimage", "data/moon.png", "moon", "Surface of the moon"),
    ("skimage", "data/ihc.png", "tissue", "Stained tissue under a microscope"),
    ("sklearn", "datasets/images/china.jpg", "temple", "Summer palace with a curved roof"),
    ("sklearn", "datasets/images/flower.jpg", "flower", "Pink dahlia in bloom"),
)
# left, top, right, bottom as shares of the picture
CROPS = {"left": (0.0, 0.05, 0.7, 0.85), "right": (0.3, 0.15, 1.0, 0.95)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One item of the catalogue."""

    name: str
    title: str
    source: str  # package and file that it comes from
    jpeg: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """A URL that cannot be embedded, and the reason that is to be found."""

    url: str
    title: str
    reason: str


@cache
def photographs() -> tuple[Photograph, ...]:
    """36 photographs: twelve, and two crops of each."""
    found = []
    for package, file, name, title in SOURCES:
        with Image.open(_home(package) / file) as picture:
            whole = picture.convert("RGB")
        source = f"{package}/{file}"
        found.append(Photograph(name=name, title=title, source=source, jpeg=_jpeg(whole)))
        for side, shares in CROPS.items():
            box = [round(share * length) for share, length in zip(shares, whole.size * 2, strict=True)]
            crop = whole.crop((box[0], box[1], box[2], box[3]))
            found.append(
                Photograph(name=f"{name}-{side}", title=f"{title}, {side} part", source=source, jpeg=_jpeg(crop))
            )
    return tuple(found)


class PhotographServer:
    """A web server on loopback with the catalogue and some URLs that must fail; serves while it is in its context.

    `/photographs/<name>.jpg` is a picture, `/flaky/<name>.jpg` is one that answers 503 the first time, `/missing/…` is
    404, `/page/…` a web page that says it were a picture, `/truncated/…` half a picture, `/private/…` a redirect to a
    private address.

    Args:
        port: to listen on; 0 takes a free one.
    """

    def __init__(self, port: int = 0) -> None:
        jpegs = {f"/photographs/{p.name}.jpg": p.jpeg for p in photographs()}
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(jpegs))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="photographs", daemon=True)
        self.requests: Counter[str] = self._server.RequestHandlerClass.requests  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def urls(self) -> dict[str, str]:
        """Name of each photograph → its URL."""
        return {p.name: f"{self.base}/photographs/{p.name}.jpg" for p in photographs()}

    @property
    def flaky_url(self) -> str:
        """A photograph that is there only when it is asked for again."""
        return f"{self.base}/flaky/cat.jpg"

    def planted(self) -> list[Planted]:
        """URLs that cannot be embedded, and why."""
        return [
            Planted(url=f"{self.base}/missing/gone.jpg", title="A picture that is gone", reason="NotFound"),
            Planted(url=f"{self.base}/page/login.jpg", title="A web page, no picture", reason="DecodeError"),
            Planted(url=f"{self.base}/truncated/half.jpg", title="Half a picture", reason="DecodeError"),
            Planted(url=f"{self.base}/private/inside.jpg", title="A redirect to a private address", reason="Blocked"),
            Planted(url="not-a-url", title="No URL at all", reason="KeyRefused"),
        ]


def _handler(jpegs: Mapping[str, bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        requests: ClassVar[Counter[str]] = Counter()

        def do_GET(self) -> None:
            self.requests[self.path] += 1
            folder, _, name = self.path.lstrip("/").partition("/")
            picture = jpegs.get(f"/photographs/{name}")
            if folder == "page":
                self._answer(200, b"<!doctype html><title>Log in</title><p>Log in to see this picture.")
            elif folder == "truncated":
                jpeg = jpegs["/photographs/temple.jpg"]
                self._answer(200, jpeg[: len(jpeg) // 2])
            elif folder == "private":
                self.send_response(302)
                self.send_header("Location", "http://10.0.0.1/inside.jpg")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif folder == "flaky" and picture:
                self._answer(503 if self.requests[self.path] == 1 else 200, picture)
            elif folder == "photographs" and picture:
                self._answer(200, picture)
            else:
                self._answer(404, b"gone")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: the demo tells what happens."""

    return Handler


def _home(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the demo's photographs lie in {package}, which is not installed")
    return Path(spec.origin).parent


def _jpeg(picture: Image.Image) -> bytes:
    smaller = picture.copy()
    smaller.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    smaller.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
