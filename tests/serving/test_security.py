"""What a stranger can do to EmbArk: nothing without a token, and little with one."""

import hashlib
import socket
import threading
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from embark.tokens import new_token
from serving.callers import LOOK_SECONDS, CallersInvalid, TokenFile
from serving.client import (
    ClientTls,
    EmbArkClient,
    EmbArkOverloaded,
    EmbArkUnavailable,
    LookupRefused,
    NotAllowed,
)
from serving.embark_pb2 import LookupRequest
from serving.embark_pb2_grpc import EmbArkStub
from serving.limits import MAX_REQUEST_BYTES
from serving.load import Gate, budget
from serving.refusals import TooLate
from serving.transport import Tls, TransportRefused, check_private
from tests.serving.fakes import IMAGE, TEXT, Clock, Parts, served

CALLERS = f"""
[callers.ranker]
token_sha256 = "{hashlib.sha256(b"secret").hexdigest()}"
views = ["{TEXT.view}"]
max_keys = 3
keys_per_second = 3

[callers.loader]
token_sha256 = "{hashlib.sha256(b"other").hexdigest()}"
views = ["*"]
announce = true

[callers.small]
token_sha256 = "{hashlib.sha256(b"small").hexdigest()}"
views = ["*"]
announce = true
max_bytes = 120
bytes_per_second = 1
"""


@pytest.fixture
def callers(tmp_path: Path) -> Path:
    path = tmp_path / "callers.toml"
    path.write_text(CALLERS)
    return path


def test_a_caller_may_what_its_token_says_and_nothing_without_one(callers: Path) -> None:
    with served(Parts().archive, callers=TokenFile(callers)) as address:
        for token, view, why in [
            (None, TEXT.view, "no token: send the metadata"),
            ("wrong", TEXT.view, "the token is not known"),
            ("secret", IMAGE.view, "ranker may not read photo__v1; it may read tiny__v1"),
        ]:
            with EmbArkClient(address, token=token) as client, pytest.raises(NotAllowed, match=why):
                client.lookup(view, ["x"])
        with EmbArkClient(address, token="secret") as client:  # noqa: S106
            with pytest.raises(NotAllowed, match="may not announce"):
                client.announce(TEXT.view, ["x"])
            with pytest.raises(NotAllowed):
                client.lookup_many([TEXT.view, IMAGE.view], {"text": ["x"], "image_url": ["http://a.example/"]})
            with pytest.raises(NotAllowed):
                list(client.stream(IMAGE.view, ["x"]))
            with pytest.raises(LookupRefused, match="4 keys, 3 are allowed"):
                client.lookup(TEXT.view, list("abcd"))
            assert len(client.lookup(TEXT.view, list("abc")).status) == 3
            with pytest.raises(EmbArkOverloaded, match="ranker asks for too many keys"):
                client.lookup(TEXT.view, list("abc"))
        with EmbArkClient(address, token="other") as client:  # noqa: S106
            assert client.announce(IMAGE.view, ["http://a.example/"]) == 1


def test_bytes_of_a_caller_are_limited_in_a_call_and_by_rate(callers: Path) -> None:
    """Of two floats, a key of one letter and the view's name."""
    with served(Parts().archive, callers=TokenFile(callers)) as address, EmbArkClient(address, token="small") as client:  # noqa: S106
        for ask in (
            lambda: client.lookup(TEXT.view, ["x" * 200]),
            lambda: client.lookup(TEXT.view, ["x"] * 30),
            lambda: client.lookup_many([TEXT.view], {"text": ["x"] * 30}),
            lambda: list(client.stream(TEXT.view, ["x"] * 30)),
            lambda: client.announce(TEXT.view, ["x" * 200]),
        ):
            with pytest.raises(LookupRefused, match=r"bytes of request and vectors, 120 are allowed"):
                ask()
        assert len(client.lookup(TEXT.view, ["x"] * 5).status) == 5  # what was refused was not counted
        with pytest.raises(EmbArkOverloaded, match=r"small asks for too many bytes: again in \d+\.\d\d s"):
            client.lookup(TEXT.view, ["x"] * 5)


def test_a_token_that_is_taken_out_of_the_file_is_refused_soon(callers: Path) -> None:
    clock = Clock()
    known = TokenFile(callers, clock=clock)
    metadata = [("authorization", "Bearer secret")]
    assert known.caller(metadata).name == "ranker"
    callers.write_text("no TOML")
    clock.now += LOOK_SECONDS
    assert known.caller(metadata).name == "ranker"  # a slip of the pen locks nobody out
    callers.write_text(CALLERS[CALLERS.index("[callers.loader]") :])
    clock.now += LOOK_SECONDS
    with pytest.raises(Exception, match="not known"):
        known.caller(metadata)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1", "tables"),
        ("[callers.a]\nviews = ['*']", "callers.a: token_sha256"),
        (f"[callers.a]\ntoken_sha256 = '{'0' * 64}'\nviews = []", "callers.a: views"),
        (f"[callers.a]\ntoken_sha256 = '{'0' * 64}'\nviews = ['*']\nmax_keys = 0", "callers.a: max_keys"),
        (f"[callers.a]\ntoken_sha256 = '{'0' * 64}'\nviews = ['*']\nlimit = 1", "callers.a: a table of"),
        (f"[callers.a]\ntoken_sha256 = '{'0' * 64}'\nviews = ['*']\nkeys_per_second = true", "keys_per_second"),
        (f"[callers.a]\ntoken_sha256 = '{'0' * 64}'\nviews = ['*']\nmax_bytes = 1.5", "callers.a: max_bytes"),
        (f"[callers.a]\ntoken_sha256 = '{'0' * 64}'\nviews = ['*']\nbytes_per_second = -1", "bytes_per_second"),
    ],
)
def test_a_file_of_callers_that_is_wrong_says_where(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "callers.toml").write_text(text)
    with pytest.raises(CallersInvalid, match=why):
        TokenFile(tmp_path / "callers.toml")


def test_a_new_token_is_known_by_the_table_that_is_made_with_it(tmp_path: Path) -> None:
    secret, table = new_token("ranker-1", views=[TEXT.view], keys_per_second=1e6, max_keys=7, max_bytes=1234567)
    (tmp_path / "callers.toml").write_text(table)
    caller = TokenFile(tmp_path / "callers.toml").caller([("authorization", f"Bearer {secret}")])
    assert (caller.name, caller.views, caller.announce, caller.max_keys) == ("ranker-1", {TEXT.view}, False, 7)
    assert caller.max_bytes == 1234567
    assert secret not in table


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, certificate in {
        "server": authority.issue_cert("localhost", "127.0.0.1"),
        "client": authority.issue_cert("ranker@example.com"),
    }.items():
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return folder


def test_tls_is_spoken_and_plain_text_is_not_understood(files: Path) -> None:
    with served(Parts().archive, tls=Tls(files / "server.pem", files / "server.key")) as address:
        with EmbArkClient(address, tls=ClientTls(ca=files / "ca.pem")) as client:
            assert len(client.lookup(TEXT.view, ["x"], timeout=20).status) == 1
        with EmbArkClient(address) as client, pytest.raises(EmbArkUnavailable):
            client.lookup(TEXT.view, ["x"], timeout=3)
        with EmbArkClient(address, tls=ClientTls()) as client, pytest.raises(EmbArkUnavailable):
            client.lookup(TEXT.view, ["x"], timeout=3)  # signed by nobody that it trusts


def test_a_client_without_a_certificate_is_turned_away_where_one_is_asked_for(files: Path) -> None:
    tls = Tls(files / "server.pem", files / "server.key", files / "ca.pem")
    with served(Parts().archive, tls=tls) as address:
        known = ClientTls(ca=files / "ca.pem", certificate=files / "client.pem", key=files / "client.key")
        with EmbArkClient(address, tls=known) as client:
            assert len(client.lookup(TEXT.view, ["x"], timeout=20).status) == 1
        with EmbArkClient(address, tls=ClientTls(ca=files / "ca.pem")) as client, pytest.raises(EmbArkUnavailable):
            client.lookup(TEXT.view, ["x"], timeout=3)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "embark.example:1"])
def test_a_public_address_wants_tls_or_an_explicit_word(address: str) -> None:
    with pytest.raises(TransportRefused, match="EMBARK_TLS_CERTIFICATE"):
        check_private(address, None, plaintext=False)
    check_private(address, None, plaintext=True)
    check_private(address, Tls(Path("a"), Path("b")), plaintext=False)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1", "unix:/tmp/embark"])
def test_this_machines_own_address_needs_none(address: str) -> None:
    check_private(address, None, plaintext=False)


def test_a_message_that_is_too_large_is_refused_before_it_is_read() -> None:
    with served(Parts().archive) as address, grpc.insecure_channel(address) as channel:
        request = LookupRequest(view=TEXT.view, keys=["x" * (MAX_REQUEST_BYTES + 1)])
        with pytest.raises(grpc.RpcError) as error:
            EmbArkStub(channel).Lookup(request, timeout=20)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def reflected(address: str) -> list[str]:
    """The services that a server tells of."""
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([question]), timeout=20)
        return [service.name for service in answer.list_services_response.service]


def test_reflection_is_on_until_told_otherwise() -> None:
    with served(Parts().archive) as address:
        assert "embark.v1.EmbArk" in reflected(address)
    with served(Parts().archive, reflected=False) as address, pytest.raises(grpc.RpcError) as error:
        reflected(address)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_reader_that_takes_nothing_holds_up_nobody() -> None:
    parts = Parts()
    keys = [f"k{i}" for i in range(20_000)]
    with served(parts.archive) as address, EmbArkClient(address) as other:
        with grpc.insecure_channel(address) as channel:
            slow = EmbArkStub(channel).LookupStream(LookupRequest(view=TEXT.view, keys=keys), timeout=60)
            next(slow)
            for _ in range(20):
                assert len(other.lookup(TEXT.view, ["x"], timeout=20).status) == 1
            slow.cancel()
        # And one that only opens a connection.
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))):
            assert len(other.lookup(TEXT.view, ["x"], timeout=20).status) == 1


def test_more_calls_than_there_is_room_for_are_refused_at_once_and_health_is_not() -> None:
    gate = Gate(1)
    with served(Parts().archive, gate=gate) as address, EmbArkClient(address) as client:
        with gate, pytest.raises(EmbArkOverloaded, match="1 calls are being answered"):
            client.lookup(TEXT.view, ["x"])
        assert len(client.lookup(TEXT.view, ["x"]).status) == 1
    assert (gate.inside, gate.refused) == (0, 1)


def test_calls_are_refused_while_too_many_answers_wait_to_be_sent() -> None:
    gate = Gate(8, most_unsent=100)
    with served(Parts().archive, gate=gate) as address, EmbArkClient(address) as client:
        gate.made(100)
        with pytest.raises(EmbArkOverloaded, match="100 bytes of answers wait to be sent"):
            client.lookup(TEXT.view, ["x"])
        gate.sent(100)
        assert len(client.lookup(TEXT.view, ["x"]).status) == 1
        assert len(client.lookup_many([TEXT.view], {TEXT.join_key: ["x"]})) == 1
    assert (gate.unsent, gate.refused) == (0, 1)


def test_a_look_up_has_less_time_than_its_call() -> None:
    assert budget(None) is None
    assert budget(1.0) == pytest.approx(0.9)
    with pytest.raises(TooLate):
        budget(0.004)


def test_threads_share_a_client() -> None:
    parts = Parts()
    parts.add(TEXT, "cat", 1.0)
    seen: list[float] = []
    with served(parts.archive) as address, EmbArkClient(address) as client:

        def ask() -> None:
            seen.extend(float(client.lookup(TEXT.view, ["cat"], timeout=20).vectors[0, 0]) for _ in range(20))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [1.0] * 80
