import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import uvloop

from encoders.encoder import Blocked, FetchError, NotFound, ServerFailed, Timeout, TooLarge
from encoders.exchange import MAX_BESIDE, BadAnswer, HungUp
from encoders.fetch import Fetcher
from encoders.network import translated
from tests.encoders import web
from tests.encoders.web import LOOPBACK, redirect_to, serving, status


def fetch(url: str, **settings: Any) -> bytes:
    settings = {"allowed_networks": LOOPBACK, "seconds": 5.0, **settings}

    async def run() -> bytes:
        async with Fetcher(**settings) as fetcher:
            return await fetcher.fetch(url)

    return uvloop.run(run())


class Names:
    """A name server that tests own; it counts how often it is asked."""

    def __init__(self, **answers: Sequence[Sequence[str]] | Exception) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answer = self.answers.get(host, [[host]])
        if isinstance(answer, Exception):
            raise answer
        return answer[min(self.asked.count(host), len(answer)) - 1]


def test_a_file_is_downloaded_as_it_is() -> None:
    content = bytes(range(256)) * 1000
    with serving({"/a": content}) as site:
        assert fetch(site.url("/a?x=1&y=%20")) == content
    path, headers = site.seen[0]
    assert path == "/a?x=1&y=%20"
    assert headers["user-agent"] == "EmbArk-Retina/0.1"
    assert headers["accept-encoding"] == "identity"
    assert headers["host"] == f"127.0.0.1:{site.port}"


def test_loopback_is_blocked_unless_it_is_allowed() -> None:
    with serving({"/a": b"secret"}) as site:
        with pytest.raises(Blocked, match=r"127\.0\.0\.1"):
            fetch(site.url("/a"), allowed_networks=())
        for host in ("localhost", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "0"):
            with pytest.raises(Blocked):
                fetch(f"http://{host}:{site.port}/a", allowed_networks=())
        assert site.seen == []


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1"]
)
def test_a_name_that_leads_to_a_private_address_is_blocked(address: str) -> None:
    with pytest.raises(Blocked, match=r"trap\.example"):
        fetch("http://trap.example/a", allowed_networks=(), resolve=Names(trap_example=[[address]]))


def test_a_name_is_resolved_once_and_its_second_answer_never_asked_for() -> None:
    # Were the name looked up again for the connection, it would lead to a server that is not there.
    names = Names(rebinding_example=[["127.0.0.1"], ["127.66.66.66"]])
    with serving({"/a": b"picture"}) as site:
        assert fetch(f"http://rebinding.example:{site.port}/a", resolve=names) == b"picture"
    assert names.asked == ["rebinding.example"]
    assert site.seen[0][1]["host"] == f"rebinding.example:{site.port}"


def test_of_several_addresses_only_allowed_ones_are_used() -> None:
    names = Names(mixed_example=[["10.0.0.1", "127.0.0.1"]])
    with serving({"/a": b"picture"}) as site:
        assert fetch(f"http://mixed.example:{site.port}/a", resolve=names) == b"picture"


def test_the_second_address_of_a_name_is_tried_where_the_first_refuses() -> None:
    names = Names(two_example=[["127.66.66.66", "127.0.0.1"]])
    with serving({"/a": b"picture"}) as site:
        assert fetch(f"http://two.example:{site.port}/a", resolve=names) == b"picture"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(code: int) -> None:
    with serving({"/a": redirect_to("b?x=%20\xc3\xb6", code), "/b": b"picture"}) as site:
        assert fetch(site.url("/a")) == b"picture"
        assert site.seen[1][0] == "/b?x=%20%C3%B6"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://10.0.0.1/x", Blocked),
        ("http://169.254.169.254/latest/meta-data/", Blocked),
        ("//[::ffff:10.0.0.1]/x", Blocked),
        ("file:///etc/passwd", Blocked),
        ("ftp://a.example/x", Blocked),
        ("data:image/png;base64,AAAA", Blocked),
        ("gopher://127.0.0.1:6379/_x", Blocked),
        ("http://user:password@a.example/", Blocked),
        ("http://[::1/", NotFound),
        ("http://a.example:99999/", NotFound),
        ("http:///x", NotFound),
        ("http://trap.example/", Blocked),
        ("/" + "x" * 40_000, NotFound),
    ],
)
def test_each_redirect_is_checked_again(location: str, expected: type[FetchError]) -> None:
    names = Names(trap_example=[["10.0.0.1"]])
    with serving({"/a": redirect_to(location)}) as site, pytest.raises(expected):
        fetch(site.url("/a"), resolve=names)


def test_a_redirect_loop_ends() -> None:
    with serving({"/a": redirect_to("/b"), "/b": redirect_to("/a")}) as site:
        with pytest.raises(NotFound, match="more than 5 redirects"):
            fetch(site.url("/a"))
        assert len(site.seen) == 6


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, NotFound),
        (403, NotFound),
        (404, NotFound),
        (410, NotFound),
        (304, NotFound),
        (302, NotFound),  # without a location
        (408, ServerFailed),
        (425, ServerFailed),
        (429, ServerFailed),
        (500, ServerFailed),
        (503, ServerFailed),
    ],
)
def test_a_status_says_whether_a_retry_helps(code: int, expected: type[FetchError]) -> None:
    with serving({"/a": status(code)}) as site, pytest.raises(expected, match=str(code)) as raised:
        fetch(site.url("/a"))
    assert raised.value.retryable == (expected is ServerFailed)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (web.silent, Timeout),
        (web.slow_drops, Timeout),
        (web.endless, TooLarge),
        (web.header_flood, ServerFailed),
        (web.broken_off, ServerFailed),
        (web.no_http, ServerFailed),
        (lambda handler: handler.answer(200, b"x", Content_Encoding="gzip"), NotFound),
        (lambda handler: handler.answer(200, bytes(1_000_001)), TooLarge),
    ],
)
def test_bad_servers_have_named_errors(page: web.Page, expected: type[FetchError]) -> None:
    with serving({"/a": page}) as site, pytest.raises(expected):
        fetch(site.url("/a"), max_bytes=1_000_000, seconds=1.0)


def test_a_file_of_just_the_allowed_size_is_taken() -> None:
    with serving({"/a": bytes(1000)}) as site:
        assert len(fetch(site.url("/a"), max_bytes=1000)) == 1000


def test_a_refused_connection_may_be_tried_again() -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ServerFailed, match=str(taken.getsockname()[1])) as raised:
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/a")
    assert raised.value.retryable


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no such name"), NotFound),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), ServerFailed),
        (socket.gaierror(socket.EAI_FAIL, "failed"), ServerFailed),
        (UnicodeError("label too long"), NotFound),
        ([[]], Blocked),
    ],
)
def test_a_name_that_cannot_be_resolved_says_whether_a_retry_helps(answer: Any, expected: type[FetchError]) -> None:
    with pytest.raises(expected, match=r"odd\.example"):
        fetch("http://odd.example/a", resolve=Names(odd_example=answer))


def test_every_error_of_the_network_is_translated() -> None:
    for kind in [
        BadAnswer,
        HungUp,
        OSError,
        ConnectionResetError,
        socket.gaierror,
        ssl.SSLError,
        TimeoutError,
        UnicodeError,
    ]:
        with pytest.raises(FetchError), translated("http://a.example/"):
            raise kind("x")


def test_a_bug_is_not_taken_for_an_error_of_the_network() -> None:
    with pytest.raises(KeyError), translated("http://a.example/"):
        raise KeyError("x")


def test_certificates_are_checked_for_the_name_though_the_address_is_connected_to() -> None:
    names = Names(pictures_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    trust = ssl.create_default_context(cafile=str(web.CERTIFICATE))
    with serving({"/a": b"picture"}, tls=True) as site:
        assert fetch(f"https://pictures.example:{site.port}/a", resolve=names, tls=trust) == b"picture"
        with pytest.raises(ServerFailed, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://other.example:{site.port}/a", resolve=names, tls=trust)
        with pytest.raises(ServerFailed, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://pictures.example:{site.port}/a", resolve=names)


def run_with_fetcher(action: Callable[[Fetcher], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with Fetcher(allowed_networks=LOOPBACK, **settings) as fetcher:
            await action(fetcher)

    asyncio.run(run())


def test_a_kept_connection_is_used_again_unless_more_was_said_than_asked() -> None:
    ports: list[int] = []

    def kept(handler: web.Handler) -> None:
        ports.append(handler.client_address[1])
        handler.answer(200, b"kept")

    def says_two(handler: web.Handler) -> None:
        ports.append(handler.client_address[1])
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo" * 2)

    def hangs_up(handler: web.Handler) -> None:
        ports.append(handler.client_address[1])
        handler.answer(200, b"up", Connection="close")

    with serving({"/kept": kept, "/two": says_two, "/up": hangs_up}) as site:

        async def one_after_another(fetcher: Fetcher) -> None:
            for path in ("/kept", "/kept", "/two", "/kept", "/up", "/kept"):
                assert await fetcher.fetch(site.url(path)) == path[1:].encode()

        run_with_fetcher(one_after_another)
    assert [a == b for a, b in pairwise(ports)] == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n", b"ok"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", NotFound),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", ServerFailed),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_BESIDE // 20), ServerFailed),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: " + b"x" * 10 * MAX_BESIDE,
            ServerFailed,
        ),
    ],
)
def test_answers_are_read_as_http_says(answer: bytes, expected: bytes | type[FetchError]) -> None:
    def page(handler: web.Handler) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    with serving({"/a": page}) as site:
        if isinstance(expected, bytes):
            assert fetch(site.url("/a")) == expected
        else:
            with pytest.raises(expected):
                fetch(site.url("/a"))


def test_a_request_is_sent_once_more_where_a_kept_connection_was_just_closed() -> None:
    class HangsUpWhenAskedAgain(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.asked = transport, 0

        def data_received(self, data: bytes) -> None:
            self.asked += 1
            if self.asked == 1:
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")  # type: ignore[attr-defined]
            else:
                self.transport.close()

    async def twice() -> None:
        server = await asyncio.get_running_loop().create_server(HangsUpWhenAskedAgain, "127.0.0.1", 0)
        async with server, Fetcher(allowed_networks=LOOPBACK) as fetcher:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"
            assert [await fetcher.fetch(url) for _ in range(3)] == [b"ok"] * 3

    asyncio.run(twice())


def test_a_host_or_a_user_agent_that_would_end_a_line_of_a_request_is_refused() -> None:
    for host in ("a\x01b", "a b", "a\x7f"):
        with pytest.raises(NotFound):
            fetch(f"http://{host}/")
    with pytest.raises(ValueError, match="user_agent"):
        fetch("http://a.example/", user_agent="a\r\nX: y")


def test_one_host_is_not_asked_for_more_files_at_a_time_than_allowed() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def counted(handler: web.Handler) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        handler.server.stopping.wait(0.05)
        with lock:
            now -= 1
        handler.answer(200, b"picture")

    with serving({"/a": counted}) as site:

        async def many(fetcher: Fetcher) -> None:
            contents = await asyncio.gather(*[fetcher.fetch(site.url(f"/a?{n}")) for n in range(12)])
            assert contents == [b"picture"] * 12

        run_with_fetcher(many, per_host=3)
    assert most == 3


def test_a_slow_host_leaves_places_for_the_others() -> None:
    with serving({"/slow": web.silent, "/a": b"picture"}) as site:

        async def beside_a_slow_host(fetcher: Fetcher) -> None:
            slow = [asyncio.create_task(fetcher.fetch(site.url(f"/slow?{n}"))) for n in range(20)]
            async with asyncio.timeout(20):
                while len(site.seen) < 2:
                    await asyncio.sleep(0.01)
                for n in range(5):  # all places but those of the slow host, again and again
                    assert await fetcher.fetch(f"http://other.example:{site.port}/a?{n}") == b"picture"
            assert len([path for path, _ in site.seen if path.startswith("/slow")]) == 2
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

        names = Names(other_example=[["127.0.0.1"]])
        run_with_fetcher(beside_a_slow_host, concurrency=3, per_host=2, seconds=60.0, resolve=names)


def test_a_trickle_gives_up_its_place_before_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encoders.fetch.TRICKLE_SECONDS", 0.2)
    with serving({"/a": web.slow_drops}) as site, pytest.raises(Timeout, match="bytes came in"):
        fetch(site.url("/a"), seconds=120.0)


def test_downloads_that_were_cancelled_or_failed_leave_nothing_behind() -> None:
    with serving({"/slow": web.silent, "/endless": web.endless, "/a": b"picture"}) as site:

        async def cancelled_then_good(fetcher: Fetcher) -> None:
            for _ in range(5):  # more than the slots there are
                slow = [asyncio.create_task(fetcher.fetch(site.url("/slow"))) for _ in range(4)]
                await asyncio.sleep(0.05)
                for task in slow:
                    task.cancel()
                assert all(
                    isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*slow, return_exceptions=True)
                )
                with pytest.raises(TooLarge):
                    await fetcher.fetch(site.url("/endless"))
            assert await fetcher.fetch(site.url("/a")) == b"picture"

        run_with_fetcher(cancelled_then_good, concurrency=2, per_host=2, max_bytes=100_000, seconds=5.0)
