import contextlib
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embark import parts
from embark.repo import RepoError
from embark.servers import free_port
from embark.settings import Settings
from encoders.client import RetinaClient
from encoders.spec import EncoderSpec, SpecError

TEXT = EncoderSpec(name="t", version="v1", modality="text", dim=8, network="text_lstm", pinned="seeded:0")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)

    @contextlib.contextmanager
    def registered(_: Settings) -> Iterator[Any]:
        yield SimpleNamespace(specs={TEXT.view: TEXT})

    monkeypatch.setattr(parts, "directory_of", registered)
    return Settings(
        retina_address=f"127.0.0.1:{free_port()}",
        retina_metrics=f"127.0.0.1:{free_port()}",
        retina_warm=[TEXT.view],
        retina_memory_mb=100,
        device="cpu",
    )


def test_retina_warms_serves_tells_its_metrics_and_ends_on_sigterm(settings: Settings) -> None:
    seen: list[Any] = []

    def look() -> None:
        try:
            with RetinaClient(settings.retina_address) as client:
                for _ in range(600):
                    with contextlib.suppress(Exception):  # until it is ready
                        seen.append(client.encode(TEXT.view, TEXT.fingerprint, ["a", "b"], 20).vectors.shape)
                        break
                    threading.Event().wait(0.1)
                seen.append(client.encoders().encoders[0].loaded)
            with urllib.request.urlopen(f"http://{settings.retina_metrics}/metrics") as answer:
                seen.append(answer.read().decode())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    looking = threading.Thread(target=look)
    looking.start()
    parts.run_retina(settings)
    looking.join()
    assert seen[:2] == [(2, 8), True]
    for line in ('embark_retina_keys_total{outcome="embedded",view="t__v1"} 2.0', "embark_retina_encoders_loaded 1.0"):
        assert line in seen[2]
    assert float(seen[2].partition("\nembark_retina_encoder_bytes ")[2].partition("\n")[0]) > 1e6


def test_a_view_that_cannot_be_warm_ends_it_with_the_reason(settings: Settings) -> None:
    unknown = settings.model_copy(update={"retina_warm": ["x__v1"]})
    with pytest.raises(SpecError, match="registered are t__v1"):
        parts.run_retina(unknown)


def test_retina_does_not_listen_on_a_list(settings: Settings) -> None:
    with pytest.raises(RepoError, match="say which with --listen"):
        parts.run_retina(settings.model_copy(update={"retina_address": "a:1,b:2"}))
