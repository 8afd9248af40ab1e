"""What the settings of the online store make of the driver's cluster, without a server."""

import re
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import (
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    NoSpeculativeExecutionPolicy,
    RetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import tuple_factory
from cryptography.hazmat.primitives import serialization
from pydantic import ValidationError

from feature_repo.online.cluster import READ, WRITE, StoreMisconfigured, cluster_options
from feature_repo.online_store import EmbeddingOnlineStoreConfig

PROFILES = (EXEC_PROFILE_DEFAULT, READ, WRITE)
TWO_CENTRES = [{"name": "here", "hosts": ["10.0.0.1", "10.0.0.2"]}, {"name": "there", "hosts": ["10.1.0.1"]}]


def options(**settings: Any) -> dict[str, Any]:
    if not settings.keys() & {"hosts", "datacenters", "secure_bundle_path"}:
        settings["hosts"] = ["10.0.0.1"]
    return cluster_options(EmbeddingOnlineStoreConfig(**settings))


def profiles(**settings: Any) -> dict[Any, ExecutionProfile]:
    found: dict[Any, ExecutionProfile] = options(**settings)["execution_profiles"]
    assert set(found) == set(PROFILES)
    return found


def data_centre(profile: ExecutionProfile) -> str | None:
    policy = profile.load_balancing_policy
    local: str | None = (policy._child_policy if isinstance(policy, TokenAwarePolicy) else policy).local_dc
    return local


# ── contradictions ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hosts": None},
            "`online_store:` needs one of `hosts`, `secure_bundle_path` and `datacenters`; it has none",
        ),
        (
            {"hosts": ["10.0.0.1"], "secure_bundle_path": "bundle.zip"},
            "`online_store:` needs one of `hosts`, `secure_bundle_path` and `datacenters`; "
            "it has hosts and secure_bundle_path",
        ),
        (
            {"hosts": ["10.0.0.1"], "datacenters": TWO_CENTRES},
            "`online_store:` needs one of `hosts`, `secure_bundle_path` and `datacenters`; "
            "it has hosts and datacenters",
        ),
        ({"datacenters": [{"name": "here", "hosts": []}]}, "none of `datacenters` has `hosts`"),
        (
            {"secure_bundle_path": "bundle.zip", "tls": {}},
            "a `secure_bundle_path` brings its own TLS: leave out `tls`",
        ),
        ({"routing": {"read_dc": "here"}}, "`routing` needs `datacenters`"),
        (
            {"datacenters": TWO_CENTRES, "routing": {"read_dc": "nowhere"}},
            "data centre 'nowhere' is not among `datacenters`: here, there",
        ),
        (
            {"datacenters": TWO_CENTRES, "routing": {"write_dc": "nowhere"}},
            "data centre 'nowhere' is not among `datacenters`: here, there",
        ),
        (
            {
                "datacenters": TWO_CENTRES,
                "load_balancing": {"load_balancing_policy": "DCAwareRoundRobinPolicy", "local_dc": "nowhere"},
            },
            "data centre 'nowhere' is not among `datacenters`: here, there",
        ),
        (
            {"load_balancing": {"load_balancing_policy": "RoundRobinPolicy"}},
            "load_balancing_policy 'RoundRobinPolicy': allowed are TokenAwarePolicy(DCAwareRoundRobinPolicy), "
            "DCAwareRoundRobinPolicy",
        ),
        ({"username": "feast"}, "`username` and `password` are given both or not at all"),
        ({"password": "secret"}, "`username` and `password` are given both or not at all"),
        (
            {"speculative_delay": 5.0, "request_timeout": 2.0},
            "`speculative_delay: 5.0` never comes before `request_timeout: 2.0`",
        ),
        (
            {"read_consistency": "ANY"},
            "`read_consistency: ANY` is no consistency of reads; `write_consistency` may be ANY",
        ),
        ({"tls": {"key": "client.key"}}, "`tls`: a `key` needs the `certificate` that it belongs to"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreMisconfigured, match=f"^{re.escape(message)}$"):
        options(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"request_timeout": 0.0},
        {"retries": -1},
        {"speculative_delay": 0.0},
        {"speculative_attempts": 0},
        {"read_consistency": "MOST"},
        {"write_consistency": "quorum"},
        {"read_chunk_size": 0},
        {"read_chunk_size": 1001},
        {"read_concurrency": 0},
        {"write_concurrency": 0},
        {"tls": {"ca": "ca.pem"}},
    ],
)
def test_a_setting_out_of_its_range_is_named(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValidationError, match=name):
        options(**settings)


# ── whom to ask ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_given_is_what_is_connected_to() -> None:
    assert options(hosts=["10.0.0.1", "10.0.0.2"])["contact_points"] == ["10.0.0.1", "10.0.0.2"]
    assert options(datacenters=TWO_CENTRES)["contact_points"] == ["10.0.0.1", "10.0.0.2", "10.1.0.1"]
    bundle = options(secure_bundle_path="bundle.zip")
    assert bundle["cloud"] == {"secure_connect_bundle": "bundle.zip"}
    assert "contact_points" not in bundle
    assert options()["port"] == 9042
    assert options(port=29042)["port"] == 29042


def test_the_options_are_the_drivers_own() -> None:
    cluster = Cluster(**options(username="feast", password="secret", tls={}))  # noqa: S106
    try:
        assert cluster.get_control_connection_host() is None  # nothing was asked
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(
    ("settings", "read", "write"),
    [
        ({}, "", ""),  # that of the contact points
        (
            {"load_balancing": {"load_balancing_policy": "DCAwareRoundRobinPolicy", "local_dc": "there"}},
            "there",
            "there",
        ),
        ({"datacenters": TWO_CENTRES}, "here", "here"),
        (
            {
                "datacenters": TWO_CENTRES,
                "load_balancing": {"load_balancing_policy": "DCAwareRoundRobinPolicy", "local_dc": "there"},
            },
            "there",
            "there",
        ),
        ({"datacenters": TWO_CENTRES, "routing": {"read_dc": "there"}}, "there", "here"),
        ({"datacenters": TWO_CENTRES, "routing": {"write_dc": "there"}}, "here", "there"),
        ({"datacenters": TWO_CENTRES, "routing": {"read_dc": "there", "write_dc": "here"}}, "there", "here"),
    ],
)
def test_reads_and_writes_go_to_the_data_centres_that_are_routed_to(
    settings: dict[str, Any], read: str, write: str
) -> None:
    made = profiles(**settings)
    assert (data_centre(made[READ]) or "", data_centre(made[WRITE]) or "") == (read, write)
    assert data_centre(made[EXEC_PROFILE_DEFAULT]) == data_centre(made[READ])


@pytest.mark.parametrize(
    ("named", "aware"),
    [(None, True), ("TokenAwarePolicy(DCAwareRoundRobinPolicy)", True), ("DCAwareRoundRobinPolicy", False)],
)
def test_statements_go_to_a_replica_unless_that_is_not_wanted(named: str | None, aware: bool) -> None:
    settings = {"load_balancing": {"load_balancing_policy": named}} if named else {}
    for profile in profiles(**settings).values():
        assert isinstance(profile.load_balancing_policy, TokenAwarePolicy if aware else DCAwareRoundRobinPolicy)


# ── how long, how often, how sure ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [{}, {"load_balancing": {"load_balancing_policy": "DCAwareRoundRobinPolicy"}}])
def test_the_request_timeout_holds_for_every_statement(settings: dict[str, Any]) -> None:
    """In Feast's own store it does for none, unless there is a `load_balancing`."""
    assert {profile.request_timeout for profile in profiles(request_timeout=1.5, **settings).values()} == {1.5}
    assert {profile.request_timeout for profile in profiles(**settings).values()} == {5.0}


def test_reads_and_writes_have_consistencies_of_their_own() -> None:
    made = profiles(read_consistency="LOCAL_ONE", write_consistency="ANY")
    assert made[READ].consistency_level == made[EXEC_PROFILE_DEFAULT].consistency_level == ConsistencyLevel.LOCAL_ONE
    assert made[WRITE].consistency_level == ConsistencyLevel.ANY
    assert {profile.consistency_level for profile in profiles().values()} == {ConsistencyLevel.LOCAL_QUORUM}


def test_rows_are_answered_as_tuples() -> None:
    assert {profile.row_factory for profile in profiles().values()} == {tuple_factory}


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_what_a_node_did_not_carry_out_is_given_to_the_next_as_often_as_is_said(retries: int) -> None:
    level = ConsistencyLevel.QUORUM
    received = {"consistency": level, "required_responses": 2, "received_responses": 1}
    alive = {"consistency": level, "required_replicas": 2, "alive_replicas": 1}
    again, given_up = (RetryPolicy.RETRY_NEXT_HOST, None), (RetryPolicy.RETHROW, None)
    for profile in profiles(retries=retries).values():
        policy = profile.retry_policy
        for n in range(retries + 2):  # the driver's own calls: what the server told, and how many retries there were
            decisions = [
                policy.on_read_timeout(None, retry_num=n, data_retrieved=False, **received),
                policy.on_write_timeout(None, retry_num=n, write_type="SIMPLE", **received),
                policy.on_unavailable(None, retry_num=n, **alive),
                policy.on_request_error(None, level, error=OSError(), retry_num=n),
            ]
            assert decisions == [again if n < retries else given_up] * 4


def test_a_second_node_is_asked_only_where_a_delay_is_given() -> None:
    for profile in profiles(speculative_attempts=3).values():
        assert isinstance(profile.speculative_execution_policy, NoSpeculativeExecutionPolicy)
    for profile in profiles(speculative_delay=0.05, speculative_attempts=2).values():
        assert isinstance(profile.speculative_execution_policy, ConstantSpeculativeExecutionPolicy)
        plan = profile.speculative_execution_policy.new_plan("embark", None)
        assert [plan.next_execution(None) for _ in range(3)] == [0.05, 0.05, -1]


def test_a_node_that_was_down_for_days_is_still_looked_for() -> None:
    made = options()
    waits = made["reconnection_policy"].new_schedule()
    assert max(next(waits) for _ in range(10_000)) <= 10.0


def test_a_node_that_hangs_is_found_out_within_half_a_minute() -> None:
    made = options()
    assert 2 * made["idle_heartbeat_interval"] + made["idle_heartbeat_timeout"] <= 30.0


def test_the_protocol_is_compressed_where_that_is_said_and_its_version_is_4_unless_said() -> None:
    assert (options()["compression"], options()["protocol_version"]) == (False, 4)
    assert (options(compression=True)["compression"], options(protocol_version=5)["protocol_version"]) == ("lz4", 5)


def test_no_query_waits_for_the_one_before_it_and_an_embedding_is_read_in_one_piece() -> None:
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in options()["sockopts"]
    connection = options()["connection_class"]
    assert issubclass(connection, Cluster.connection_class)
    assert connection.in_buffer_size >= 8192 * 4  # the longest vector


# ── who we are, and whom we trust ────────────────────────────────────────────────────────────────────────────────────


def test_a_name_and_a_password_are_told_to_cassandra() -> None:
    assert options()["auth_provider"] is None
    told = options(username="feast", password="secret")["auth_provider"]  # noqa: S106
    assert isinstance(told, PlainTextAuthProvider)
    assert (told.username, told.password) == ("feast", "secret")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def pem(folder: Path, name: str, *blobs: trustme.Blob) -> str:
    file = folder / name
    file.write_bytes(b"".join(blob.bytes() for blob in blobs))
    return str(file)


def test_without_tls_nothing_is_encrypted() -> None:
    assert options()["ssl_context"] is None


def test_with_tls_a_certificate_is_always_demanded_and_its_name_unless_said(
    tmp_path: Path, authority: trustme.CA
) -> None:
    ca = pem(tmp_path, "ca.pem", authority.cert_pem)
    trusting = options(tls={"ca_certificate": ca})["ssl_context"]
    assert (trusting.verify_mode, trusting.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(trusting.get_ca_certs()) == 1
    assert trusting.minimum_version >= ssl.TLSVersion.TLSv1_2
    anywhere = options(tls={"ca_certificate": ca, "verify_hostname": False})["ssl_context"]
    assert (anywhere.verify_mode, anywhere.check_hostname) == (ssl.CERT_REQUIRED, False)


def test_our_own_certificate_may_hold_its_key(tmp_path: Path, authority: trustme.CA) -> None:
    ours = authority.issue_cert("client.example.org")
    both = pem(tmp_path, "both.pem", ours.private_key_pem, *ours.cert_chain_pems)
    certificate = pem(tmp_path, "certificate.pem", *ours.cert_chain_pems)
    key = pem(tmp_path, "key.pem", ours.private_key_pem)
    assert options(tls={"certificate": both})["ssl_context"] is not None
    assert options(tls={"certificate": certificate, "key": key})["ssl_context"] is not None


@pytest.mark.parametrize(
    "broken", ["missing authority", "no authority", "missing key", "another key", "no certificate"]
)
def test_a_certificate_or_key_that_cannot_be_used_is_told(tmp_path: Path, authority: trustme.CA, broken: str) -> None:
    ours, others = authority.issue_cert("client.example.org"), authority.issue_cert("other.example.org")
    certificate = pem(tmp_path, "certificate.pem", *ours.cert_chain_pems)
    another = pem(tmp_path, "another.pem", others.private_key_pem)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    tls = {
        "missing authority": {"ca_certificate": str(tmp_path / "missing.pem")},
        "no authority": {"ca_certificate": str(nonsense)},
        "missing key": {"certificate": certificate},
        "another key": {"certificate": certificate, "key": another},
        "no certificate": {"certificate": str(nonsense)},
    }[broken]
    with pytest.raises(StoreMisconfigured, match=r"^`tls`: a certificate or key cannot be used: "):
        options(tls=tls)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path, authority: trustme.CA) -> None:
    ours = authority.issue_cert("client.example.org")
    certificate = pem(tmp_path, "certificate.pem", *ours.cert_chain_pems)
    key = tmp_path / "key.pem"
    key.write_bytes(encrypted(ours.private_key_pem.bytes(), b"secret"))
    with pytest.raises(StoreMisconfigured, match=r"^`tls`: a certificate or key cannot be used: "):
        options(tls={"certificate": certificate, "key": str(key)})


def encrypted(key: bytes, passphrase: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
