"""A small catalogue of real photographs with titles, and a web server for it: what the demo looks up.

The photographs are those inside the wheels of scikit-image and scikit-learn, and parts of them; nothing is downloaded.
"""

import io
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from PIL import Image

SIDE = 400  # pixels, the longer one
QUALITY = 90
IDLE_SECONDS = 5.0  # after which a connection without a request is dropped: closing waits for it

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

# package and file in it → name, part, title of each photograph
SOURCES: Mapping[tuple[str, str], tuple[tuple[str, Box, str], ...]] = {
    ("skimage", "data/astronaut.png"): (
        ("astronaut", WHOLE, "An astronaut in an orange suit before a shuttle model"),
        ("astronaut-portrait", (0.15, 0.0, 0.75, 0.5), "A portrait of a smiling astronaut"),
        ("astronaut-suit", (0.0, 0.45, 0.7, 1.0), "An orange space suit with badges"),
    ),
    ("skimage", "data/chelsea.png"): (
        ("cat", WHOLE, "A ginger tabby cat looking into the camera"),
        ("cat-eyes", (0.25, 0.1, 0.85, 0.7), "The green eyes of a ginger cat"),
        ("cat-fur", (0.0, 0.0, 0.5, 0.75), "The striped fur of a ginger cat"),
    ),
    ("skimage", "data/coffee.png"): (
        ("coffee", WHOLE, "A cup of coffee with a spoon on a wooden table"),
        ("coffee-cup", (0.22, 0.0, 0.78, 0.6), "A white cup of coffee seen from above"),
        ("coffee-spoon", (0.25, 0.45, 0.85, 1.0), "A spoon on an orange saucer"),
    ),
    ("skimage", "data/rocket.jpg"): (
        ("rocket", WHOLE, "A rocket on its launch pad at dusk"),
        ("rocket-pad", (0.3, 0.2, 0.75, 1.0), "A white rocket lit by floodlights"),
        ("rocket-towers", (0.0, 0.25, 0.5, 1.0), "Launch towers against a blue evening sky"),
    ),
    ("skimage", "data/hubble_deep_field.jpg"): (
        ("galaxies", WHOLE, "Thousands of galaxies in the deep field"),
        ("galaxies-far", (0.0, 0.0, 0.5, 0.55), "Distant galaxies on a black sky"),
        ("galaxies-near", (0.4, 0.4, 1.0, 1.0), "Bright and faint galaxies on a black sky"),
    ),
    ("skimage", "data/retina.jpg"): (
        ("retina", WHOLE, "The retina of a human eye"),
        ("retina-disc", (0.02, 0.22, 0.55, 0.75), "The bright optic disc of an eye"),
        ("retina-vessels", (0.35, 0.1, 0.95, 0.7), "Fine blood vessels of an eye"),
    ),
    ("skimage", "data/motorcycle_left.png"): (
        ("motorcycle", WHOLE, "A red motorcycle in a garage"),
        ("motorcycle-engine", (0.25, 0.25, 0.75, 0.95), "The engine of a red motorcycle"),
        ("motorcycle-wheel", (0.55, 0.3, 1.0, 1.0), "The front wheel of a red motorcycle"),
    ),
    ("skimage", "data/coins.png"): (
        ("coins", WHOLE, "Ancient coins in four rows"),
        ("coins-small", (0.0, 0.0, 0.6, 0.55), "Small ancient coins in two rows"),
        ("coins-large", (0.4, 0.45, 1.0, 1.0), "Large ancient coins with heads in relief"),
    ),
    ("skimage", "data/moon.png"): (
        ("moon", WHOLE, "The surface of the moon"),
        ("moon-crater", (0.0, 0.0, 0.6, 0.55), "A round crater on the moon"),
        ("moon-pits", (0.2, 0.5, 0.8, 1.0), "Dark pits on the surface of the moon"),
    ),
    ("skimage", "data/ihc.png"): (
        ("tissue", WHOLE, "Stained tissue under a microscope"),
        ("tissue-gland", (0.0, 0.0, 0.55, 0.55), "Brown glands under a microscope"),
        ("tissue-cells", (0.45, 0.4, 1.0, 1.0), "Blue cell nuclei under a microscope"),
    ),
    ("sklearn", "datasets/images/china.jpg"): (
        ("temple", WHOLE, "A pagoda with green roofs above a lake"),
        ("temple-roof", (0.15, 0.05, 0.6, 0.6), "The curved green roofs of a pagoda"),
        ("temple-lake", (0.5, 0.25, 1.0, 1.0), "Trees before a misty lake"),
    ),
    ("sklearn", "datasets/images/flower.jpg"): (
        ("flower", WHOLE, "An orange dahlia in bloom"),
        ("flower-petals", (0.25, 0.15, 0.72, 0.75), "The petals of an orange dahlia"),
        ("flower-bud", (0.3, 0.5, 0.95, 1.0), "Two orange dahlias, one below the other"),
    ),
}


class PortTaken(OSError):
    """The port that was asked for is in use, or may not be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One item of the catalogue."""

    name: str
    title: str
    source: str  # package and file that it comes from
    jpeg: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """A key that cannot be embedded, and the reason that is to be found."""

    url: str
    title: str
    reason: str


@cache
def photographs() -> tuple[Photograph, ...]:
    """36 photographs of at most 400 pixels a side: twelve, and two parts of each.

    Raises:
        ModuleNotFoundError: a package that they lie in is not installed.
    """
    found = []
    for (package, file), parts in SOURCES.items():
        with Image.open(_home(package) / file) as picture:
            whole = picture.convert("RGB")
        found += [
            Photograph(name=name, title=title, source=f"{package}/{file}", jpeg=_jpeg(_part(whole, box)))
            for name, box, title in parts
        ]
    return tuple(found)


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


def _home(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the demo's photographs lie in {package}, which is not installed")
    return Path(spec.origin).parent


def _part(picture: Image.Image, box: Box) -> Image.Image:
    width, height = picture.size
    left, top, right, bottom = box
    return picture.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


def _jpeg(picture: Image.Image) -> bytes:
    smaller = picture.copy()
    smaller.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    smaller.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
