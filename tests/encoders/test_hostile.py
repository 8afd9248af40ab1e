"""No input stops Retina: a corpus of hostile ones against a real process, each with its named error."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import grpc
import psutil
import pytest

from encoders.client import Outcome, RetinaClient, RetinaRefused
from tests.encoders.hostile import KEYS, SERVERS, SLOW, files, to_itself
from tests.encoders.pictures import file_of, photographs
from tests.encoders.retina_process import IMAGE, TEXT
from tests.encoders.web import serving

ROOT = Path(__file__).parents[2]
# Beside what it holds when it has embedded one picture: 64 million pixels at 16 bytes, of which one is decoded at a
# time, and 256 MB for the largest that may be decoded beside it.
CAP = 1300 << 20


class Peak:
    """The most memory that a process was seen to hold, from when it is entered."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.start = self.most = self._process.memory_info().rss

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, self._process.memory_info().rss)


@contextmanager
def retina() -> Iterator[tuple[int, str]]:
    """Process id and address."""
    command = [sys.executable, "-m", "tests.encoders.retina_process"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process.pid, f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.communicate(timeout=20)  # closes its input
    assert process.returncode == 0


def test_each_hostile_input_has_its_error_and_the_next_good_one_is_embedded() -> None:
    corpus = files()
    assert len(corpus) + len(SERVERS) + len(KEYS) >= 60
    pages = {f"/file/{quote(name)}": content for name, (content, _) in corpus.items()}
    pages |= {f"/page/{quote(name)}": page for name, (page, _) in SERVERS.items()}  # type: ignore[misc]
    pages |= {"/good.jpg": file_of(photographs()["cat"].resize((64, 48))), "/rebinding": to_itself}  # type: ignore[dict-item]
    with serving(pages) as site, retina() as (pid, address), RetinaClient(address) as client:  # type: ignore[arg-type]
        good = f"http://good.example:{site.port}/good.jpg"

        def outcome(key: str, view: str = IMAGE.view) -> Outcome:
            (found,) = client.encode(view, "", [key], 60).outcomes
            return found

        def check(name: str, found: Outcome, reason: str) -> None:
            assert found.reason == reason, f"{name!r}: {found}"
            assert found.retryable == (reason in ("Timeout", "ServerFailed")), name
            assert bool(found.detail) == bool(reason), name
            assert outcome(good).reason == "", f"after {name!r}"

        assert outcome(good).reason == ""
        with Peak(pid) as peak, ThreadPoolExecutor(len(SLOW)) as pool:
            # those that take their time, all at once; the others meanwhile
            slow = {name: pool.submit(outcome, site.url(f"/page/{quote(name)}")) for name in SLOW}
            for name, (_, reason) in corpus.items():
                check(name, outcome(f"http://good.example:{site.port}/file/{quote(name)}"), reason)
            for name, call in slow.items():
                check(name, call.result(), "Timeout")
            for name, (_, reason) in SERVERS.items():
                if name not in SLOW:
                    check(name, outcome(site.url(f"/page/{quote(name)}")), reason)
            for key, reason in KEYS.items():
                check(key, outcome(key), reason)
            check("rebinding", outcome(f"http://rebinding.example:{site.port}/rebinding"), "Blocked")
            check("10 MB of text", outcome("ten letters" * 950_000, TEXT.view), "KeyRefused")
            check("text with NUL", outcome("a\0b", TEXT.view), "KeyRefused")
            check("odd text", outcome("\u202e\ufeff\U0001f9ff\x1b[2J" * 100, TEXT.view), "")
            for malformed in (b"\xff\xff\xff\xff", b"\x1a\x02\xc3\x28", b"\x0a\xff\xff\xff\xff\x0f"):
                with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
                    channel.unary_unary("/embark.v1.Retina/Encode")(malformed, timeout=20)
                assert outcome(good).reason == ""
            with pytest.raises(RetinaRefused):
                client.encode("\0", "", [good], 20)
            assert outcome(good).reason == ""
        assert peak.most - peak.start < CAP, f"{peak.start >> 20} MB, then {peak.most >> 20} MB"
