"""The whole archive on real servers, its console, and a Chromium that looks at it."""

import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from embark.child_process import ChildProcess
from embark.repo import open_store, write_repo
from embark.servers import LocalServers, free_port
from embark.settings import Settings
from encoders.spec import EncoderSpec
from feature_repo.session import connect
from feature_repo.views import feast_objects
from tests.browser.chromium import browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGE = EncoderSpec(
    name="mobilenet_v3_small",
    version="v1",
    modality="image",
    dim=576,
    network="torchvision:mobilenet_v3_small",
    weights="seeded:0",
)
TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=64, network="text_lstm", weights="seeded:0")
TOKEN = "a-token-of-the-browser-test"  # noqa: S105
PATIENCE = 120.0  # seconds: a busy machine is no failure
ROOT = Path(__file__).parent.parent.parent


class Pictures(ThreadingHTTPServer):
    """A site of pictures: those that are there, and 404 for the rest."""

    daemon_threads = True

    def __init__(self) -> None:
        self.there: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def put(self, name: str) -> str:
        """Has a picture of its own under a name; its URL."""
        seed = sum(name.encode())
        pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(out, "JPEG")
        self.there[f"/{name}"] = out.getvalue()
        return self.url(name)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = self.server.there.get(self.path.partition("?")[0])  # type: ignore[attr-defined]
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Archive:
    """Servers, the three parts and the console, each a process; `url` is the console's."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        servers = LocalServers(
            state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port(), keyspace="embark"
        )
        stack.callback(servers.down)
        servers.up()
        addresses = {
            name: f"127.0.0.1:{free_port()}"
            for name in (
                *("embark_address", "retina_address", "console_address"),
                *("embark_metrics", "kfc_metrics", "retina_metrics"),
            )
        }
        self.settings = Settings.model_validate(
            addresses
            | {
                "repo": folder / "repo",
                "state": folder / "state",
                "console_token": TOKEN,
                "fetch_networks": ["127.0.0.0/8"],
                "lookup_budget_ms": 9_000,  # a busy machine is slow, and no outage
            }
        )
        write_repo(self.settings.repo, kafka=servers.kafka_bootstrap, cassandra_port=servers.cassandra_port)
        store = open_store(self.settings.repo)
        connect(store)
        objects = feast_objects([IMAGE, TEXT], {}, kafka=servers.kafka_bootstrap, repo=self.settings.repo)
        store.apply(list(objects.values()))
        store._get_provider().online_store._cluster.shutdown()
        self.url = f"http://{self.settings.console_address}"
        self.processes = [
            stack.enter_context(ChildProcess(part, [part], self.settings.as_environment(), folder / f"{part}.txt"))
            for part in ("retina", "materialize", "serve", "console")
        ]
        self.retina = self.processes[0]
        self.until(self.answers, "the parts and the console do not answer")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            for process in self.processes:
                process.check()
            assert time.monotonic() < deadline, what
            time.sleep(0.2)

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/api/state", timeout=PATIENCE) as answer:
            state: dict[str, Any] = json.load(answer)
        return state

    def answers(self) -> bool:
        try:
            parts = self.state()["vitals"]["parts"]
        except OSError:
            return False
        return all(part["answering"] == part["asked"] == 1 for part in parts)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with ExitStack() as stack:
        yield Archive(tmp_path_factory.mktemp("console"), stack)


@pytest.fixture(scope="session")
def pictures() -> Iterator[Pictures]:
    with Pictures() as site:
        yield site
        site.shutdown()


@pytest.fixture(scope="session")
def chromium() -> "Iterator[Browser]":
    """A running Chromium; an error where none can be had."""
    installed = browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=installed.executable, env=installed.environment, args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script that looks for barriers."""
    return browser().axe.read_text()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where they are kept for people to look at."""
    folder = ROOT / "test-artefacts" / "console"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
