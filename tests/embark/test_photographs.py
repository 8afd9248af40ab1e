"""The catalogue and its web server, asked over real sockets."""

import asyncio
import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from ipaddress import IPv4Network
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, UnidentifiedImageError

from embark.cli import cli
from embark.photographs import PhotographServer, PortTaken
from encoders import encoder
from encoders.encoder import EncoderError
from encoders.fetch import Fetcher
from encoders.pixels import decode
from training.photographs import SIDE, photographs


def get(url: str) -> tuple[HTTPResponse, bytes]:
    """The answer as it is: no redirect is followed."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def planted_url(server: PhotographServer, folder: str) -> str:
    return next(planted.url for planted in server.planted() if f"/{folder}/" in planted.url)


def test_the_catalogue_holds_pictures_of_a_size_to_serve() -> None:
    assert len(photographs()) == 36
    for photograph in photographs():
        with Image.open(io.BytesIO(photograph.jpeg)) as picture:
            assert picture.format == "JPEG"
            assert picture.mode == "RGB"
            assert max(picture.size) <= SIDE
            assert min(picture.size) >= 100, photograph.name


def test_the_photographs_are_real_and_no_two_are_alike() -> None:
    small = {}
    for photograph in photographs():
        with Image.open(io.BytesIO(photograph.jpeg)) as picture:
            small[photograph.name] = np.asarray(picture.resize((16, 16)), dtype=np.float32)
    for name, pixels in small.items():
        assert pixels.std() > 5, f"{name} is nearly one colour"
        others = [other for other, its in small.items() if other != name and np.abs(its - pixels).mean() < 3]
        assert not others, f"{name} looks like {others}"


def test_every_photograph_has_a_name_and_a_title_of_its_own_and_says_where_it_is_from() -> None:
    catalogue = photographs()
    assert len({p.name for p in catalogue}) == len({p.title for p in catalogue}) == len(catalogue)
    assert {p.source.partition("/")[0] for p in catalogue} == {"skimage", "sklearn"}
    assert all(p.name == p.name.lower() and p.name.replace("-", "").isalpha() for p in catalogue)


def test_every_url_serves_its_photograph() -> None:
    with PhotographServer() as server:
        served = {name: get(url) for name, url in server.urls.items()}
    assert {answer.status for answer, _ in served.values()} == {200}
    assert {answer.getheader("Content-Type") for answer, _ in served.values()} == {"image/jpeg"}
    assert {name: body for name, (_, body) in served.items()} == {p.name: p.jpeg for p in photographs()}


def test_a_missing_picture_is_answered_404() -> None:
    with PhotographServer() as server:
        missing, _ = get(planted_url(server, "missing"))
        unknown, _ = get(f"{server.base}/photographs/nobody.jpg")
        elsewhere, _ = get(f"{server.base}/cat.jpg")
    assert [missing.status, unknown.status, elsewhere.status] == [404, 404, 404]


def test_a_page_claims_to_be_a_picture_and_is_none() -> None:
    with PhotographServer() as server:
        answer, body = get(planted_url(server, "page"))
    assert (answer.status, answer.getheader("Content-Type")) == (200, "image/jpeg")
    assert body.startswith(b"<!doctype html>")
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(body))


def test_a_truncated_picture_begins_like_one_and_cannot_be_decoded() -> None:
    with PhotographServer() as server:
        answer, body = get(planted_url(server, "truncated"))
    assert (answer.status, answer.getheader("Content-Length")) == (200, str(len(body)))
    with Image.open(io.BytesIO(body)) as picture, pytest.raises(OSError, match="truncated"):
        picture.load()


def test_a_redirect_leads_to_a_private_address() -> None:
    with PhotographServer() as server:
        answer, _ = get(planted_url(server, "private"))
    assert (answer.status, answer.getheader("Location")) == (302, "http://10.0.0.1/inside.jpg")


def test_a_flaky_picture_is_there_when_it_is_asked_for_again() -> None:
    with PhotographServer() as server:
        statuses = [get(server.flaky_url)[0].status for _ in range(3)]
    assert statuses == [503, 200, 200]


def test_a_flaky_picture_fails_once_however_many_ask_at_the_same_time() -> None:
    with PhotographServer() as server, ThreadPoolExecutor(16) as threads:
        statuses = list(threads.map(lambda _: get(server.flaky_url)[0].status, range(64)))
    assert sorted(statuses) == [200] * 63 + [503]


def test_planted_keys_name_the_errors_of_encoders() -> None:
    with PhotographServer() as server:
        planted = server.planted()
    reasons = {p.reason for p in planted} - {"KeyRefused"}  # refused before it is asked for
    assert reasons == {"NotFound", "DecodeError", "Blocked"}
    assert all(issubclass(getattr(encoder, reason), EncoderError) for reason in reasons)
    assert not any(getattr(encoder, reason).retryable for reason in reasons)
    assert len({p.url for p in planted}) == len({p.title for p in planted}) == len(planted)


async def reason(url: str) -> str:
    """What Retina's own download and decoding say of a URL."""
    async with Fetcher(allowed_networks=[IPv4Network("127.0.0.0/8")]) as fetcher:
        try:
            decode(await fetcher.fetch(url))
        except EncoderError as error:
            return error.reason
    return "decoded"


def test_planted_urls_fail_for_the_reason_they_were_planted_for() -> None:
    with PhotographServer() as server:
        planted = [p for p in server.planted() if p.reason != "KeyRefused"]
        found = {p.url: asyncio.run(reason(p.url)) for p in planted}
        cat = asyncio.run(reason(server.urls["cat"]))
        flaky = [asyncio.run(reason(server.flaky_url)) for _ in range(2)]
    assert found == {p.url: p.reason for p in planted}
    assert cat == "decoded"
    assert flaky == ["ServerFailed", "decoded"]


def test_requests_are_counted_by_path_even_when_they_come_at_once() -> None:
    with PhotographServer() as server, ThreadPoolExecutor(16) as threads:
        cat, moon = server.urls["cat"], server.urls["moon"]
        list(threads.map(get, [cat] * 50 + [moon] * 30))
        counted = server.requests
    assert counted == {"/photographs/cat.jpg": 50, "/photographs/moon.jpg": 30}


def test_a_client_that_goes_away_is_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    with PhotographServer() as server:
        parts = urlsplit(server.urls["cat"])
        with socket.create_connection(("127.0.0.1", parts.port or 0)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
            client.sendall(b"GET /photographs/cat.jpg HTTP/1.0\r\n")
        assert get(server.urls["cat"])[0].status == 200
    assert capfd.readouterr() == ("", "")


def test_nothing_listens_once_the_server_is_left() -> None:
    with PhotographServer() as server:
        url = server.urls["cat"]
    with pytest.raises(ConnectionRefusedError):
        get(url)


def test_a_port_that_is_taken_is_refused_in_one_line() -> None:
    with PhotographServer() as server:
        port = urlsplit(server.base).port
        assert port is not None
        with pytest.raises(PortTaken, match=f"cannot serve on port {port} of 127.0.0.1: Address already in use"):
            PhotographServer(port)


def test_the_command_tells_the_urls_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def stopped_at_once() -> Iterator[threading.Event]:
        stop = threading.Event()
        stop.set()
        yield stop

    monkeypatch.setattr("embark.parts.stopped_by_signals", stopped_at_once)
    told = json.loads(CliRunner().invoke(cli, ["photographs", "--port", "0", "--json"]).stdout)
    assert len(told) == 36
    assert told["cat"].endswith("/photographs/cat.jpg")
