"""The online store on a Cassandra that encrypts, asks for a password, and demands a certificate."""

import asyncio
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from cassandra import DriverException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy
from cryptography.hazmat.primitives import serialization
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_source import PushSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Float32, String
from feast.value_type import ValueType

from embark.servers import free_port, java
from embark.servers.cassandra import READY_SECONDS, Node
from embark.servers.ports import listens
from feature_repo.online.cluster import StoreMisconfigured
from feature_repo.session import StoreUnavailable

pytestmark = pytest.mark.servers

ADDRESS = "127.0.0.1"
IN_TIME = 20.0  # s; a refusal is an answer and takes no time-out, but two cores may be busy
LOGIN = {"username": "cassandra", "password": "cassandra"}  # which Cassandra makes 10 s after its first start
DIM = 8
ITEM = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)


# ── certificates, servers and stores ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Certificates:
    """PEM files: of two authorities, and certificates with their keys that were issued by them."""

    folder: Path

    def make(self) -> "Certificates":
        authority, foreign = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(self.path("ca"))
        foreign.cert_pem.write_to_path(self.path("foreign-ca"))
        issued = {
            "here": authority.issue_cert(ADDRESS),
            "elsewhere": authority.issue_cert("elsewhere.example.org"),
            "client": authority.issue_cert("client.example.org"),
            "stranger": foreign.issue_cert("client.example.org"),
        }
        for name, leaf in issued.items():
            # Cassandra reads keys as PKCS #8 alone, in one file with the certificate.
            key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            Path(self.path(name)).write_bytes(key + b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        return self

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.pem")

    def tls(self, **other: Any) -> dict[str, Any]:
        """The setting `tls`."""
        return {"ca_certificate": self.path("ca")} | other


@dataclass(frozen=True)
class Secured:
    """A Cassandra that talks TLS alone and asks who one is."""

    folder: Path
    certificates: Certificates
    port: int = field(default_factory=free_port)
    storage_port: int = field(default_factory=free_port)

    @contextmanager
    def running(self, certificate: str, *, demand: bool) -> Iterator[None]:
        """Runs it with that certificate; it may demand one of its clients."""
        encryption = {
            "enabled": True,
            "optional": False,
            "require_client_auth": demand,
            "keystore": self.certificates.path(certificate),
            "truststore": self.certificates.path("ca"),
            "ssl_context_factory": {"class_name": "org.apache.cassandra.security.PEMBasedSslContextFactory"},
        }
        node = Node(
            node=1,
            address=ADDRESS,
            port=self.port,
            storage_port=self.storage_port,
            nodes=1,
            folder=self.folder,
            extra={"authenticator": "PasswordAuthenticator", "client_encryption_options": encryption},
        )
        (jars,) = java.class_paths(java.CASSANDRA, verified=self.folder / "verified-jars.json")
        try:
            node.start(jars)
            node.server.wait_until(self._lets_in, READY_SECONDS)
            yield
        finally:
            node.server.stop()

    def _lets_in(self) -> bool:
        if not listens(ADDRESS, self.port):
            return False
        context = ssl.create_default_context(cafile=self.certificates.path("ca"))
        context.check_hostname = False
        context.load_cert_chain(self.certificates.path("client"))
        profile = ExecutionProfile(WhiteListRoundRobinPolicy([ADDRESS]))
        cluster = Cluster(
            [ADDRESS],
            port=self.port,
            protocol_version=5,
            ssl_context=context,
            auth_provider=PlainTextAuthProvider(**LOGIN),
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        )
        try:
            cluster.connect()
        except (NoHostAvailable, DriverException, OSError):
            return False
        finally:
            cluster.shutdown()
        return True


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates")).make()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Secured:
    return Secured(tmp_path_factory.mktemp("secured"), certificates)


@dataclass
class Repo:
    """A feature repo of one view on the secured Cassandra."""

    folder: Path
    settings: dict[str, Any]
    store: FeatureStore = field(init=False)
    view: FeatureView = field(init=False)

    def __post_init__(self) -> None:
        config = {
            "project": f"t{uuid.uuid4().hex[:8]}",
            "provider": "local",
            "registry": {"path": str(self.folder / "registry.db"), "cache_ttl_seconds": 3600},
            "online_store": {"type": "feature_repo.online_store.EmbeddingOnlineStore"} | self.settings,
            "entity_key_serialization_version": 3,
        }
        (self.folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
        self.store = FeatureStore(repo_path=str(self.folder))
        history = FileSource(name="history", path=str(self.folder / "none.parquet"), timestamp_field="at")
        self.view = FeatureView(
            name="items",
            entities=[ITEM],
            schema=[
                Field(name="item", dtype=String),
                Field(name="embedding", dtype=Array(Float32), vector_length=DIM),
            ],
            source=PushSource(name="pushed", batch_source=history),
            ttl=timedelta(0),
        )

    def apply(self) -> None:
        self.store.apply([ITEM, self.view])

    def write(self, key: str, number: float) -> None:
        value = {"embedding": Value(float_list_val=FloatList(val=[number] * DIM))}
        entity_key = EntityKey(join_keys=["item"], entity_values=[Value(string_val=key)])
        online = self.store._get_provider().online_store
        online.online_write_batch(self.store.config, self.view, [(entity_key, value, datetime.now(UTC), None)], None)

    def read(self, key: str) -> list[float]:
        answer = self.store.get_online_features(["items:embedding"], [{"item": key}]).to_dict()
        return list(answer["embedding"][0])

    def close(self) -> None:
        asyncio.run(self.store._get_provider().online_store.close())


@contextmanager
def repo_of(folder: Path, secured: Secured, **settings: Any) -> Iterator[Repo]:
    """A repo with these settings of the online store; one that is None is left out."""
    folder.mkdir(exist_ok=True)
    there = {"hosts": [ADDRESS], "port": secured.port, "keyspace": "secured", "replication": {"datacenter1": 1}}
    given = {name: value for name, value in (there | LOGIN | settings).items() if value is not None}
    repo = Repo(folder, given)
    try:
        yield repo
    finally:
        repo.close()


def assert_is_let_in(folder: Path, secured: Secured, **settings: Any) -> None:
    with repo_of(folder, secured, **settings) as repo:
        repo.apply()
        repo.write("key", 7.0)
        assert repo.read("key") == [7.0] * DIM


def assert_is_refused(
    folder: Path, secured: Secured, told: str, error: type[Exception] = StoreUnavailable, **settings: Any
) -> None:
    with repo_of(folder, secured, **settings) as repo:
        for call in (repo.apply, lambda: repo.write("key", 8.0)):
            began = time.monotonic()
            with pytest.raises(error, match=told):
                call()
            assert time.monotonic() - began < IN_TIME


# ── a password, and the server's certificate ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def asks_for_a_password(secured: Secured) -> Iterator[Secured]:
    """Its certificate names its address; it demands none."""
    with secured.running("here", demand=False):
        yield secured


@pytest.mark.parametrize("verify_hostname", [True, False])
def test_what_is_written_over_tls_with_a_password_is_read_back(
    asks_for_a_password: Secured, certificates: Certificates, tmp_path: Path, verify_hostname: bool
) -> None:
    assert_is_let_in(tmp_path, asks_for_a_password, tls=certificates.tls(verify_hostname=verify_hostname))


def test_who_does_not_talk_tls_is_refused(asks_for_a_password: Secured, tmp_path: Path) -> None:
    assert_is_refused(tmp_path, asks_for_a_password, "online store did not answer: NoHostAvailable", tls=None)


@pytest.mark.parametrize("verify_hostname", [True, False])
def test_a_server_of_a_foreign_authority_is_not_trusted(
    asks_for_a_password: Secured, certificates: Certificates, tmp_path: Path, verify_hostname: bool
) -> None:
    tls = {"ca_certificate": certificates.path("foreign-ca"), "verify_hostname": verify_hostname}
    assert_is_refused(tmp_path, asks_for_a_password, "certificate verify failed", tls=tls)


def test_without_an_authority_of_ones_own_the_systems_are_trusted(asks_for_a_password: Secured, tmp_path: Path) -> None:
    assert_is_refused(tmp_path, asks_for_a_password, "certificate verify failed", tls={})


def test_a_wrong_password_or_none_is_told_as_such(
    asks_for_a_password: Secured, certificates: Certificates, tmp_path: Path
) -> None:
    tls = certificates.tls()
    wrong = r"AuthenticationFailed.*username cassandra and/or password are incorrect"
    assert_is_refused(tmp_path / "wrong", asks_for_a_password, wrong, tls=tls, password="wrong")  # noqa: S106
    none = r"AuthenticationFailed.*requires authentication"
    assert_is_refused(tmp_path / "none", asks_for_a_password, none, tls=tls, username=None, password=None)


def test_a_certificate_that_is_not_there_is_told_before_anyone_is_asked(
    asks_for_a_password: Secured, certificates: Certificates, tmp_path: Path
) -> None:
    for name in ("ca_certificate", "certificate"):
        tls = certificates.tls(**{name: str(tmp_path / "missing.pem")})
        told = r"`tls`: a certificate or key cannot be used: .*No such file"
        assert_is_refused(tmp_path / name, asks_for_a_password, told, StoreMisconfigured, tls=tls)


def test_a_keyspace_in_a_data_centre_that_is_not_there_is_told_as_such(
    asks_for_a_password: Secured, certificates: Certificates, tmp_path: Path
) -> None:
    settings = {"tls": certificates.tls(), "keyspace": "elsewhere", "replication": {"nowhere": 3}}
    told = r"^`replication: {'nowhere': 3}` is refused: .*nowhere"
    with repo_of(tmp_path, asks_for_a_password, **settings) as repo, pytest.raises(StoreMisconfigured, match=told):
        repo.apply()


# ── a certificate of one's own ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def demands_a_certificate(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Secured]:
    """Its own certificate names another address than it has."""
    demanding = Secured(tmp_path_factory.mktemp("demanding"), certificates)
    with demanding.running("elsewhere", demand=True):
        yield demanding


def test_with_a_certificate_of_its_own_a_client_is_let_in(
    demands_a_certificate: Secured, certificates: Certificates, tmp_path: Path
) -> None:
    tls = certificates.tls(certificate=certificates.path("client"), verify_hostname=False)
    assert_is_let_in(tmp_path, demands_a_certificate, tls=tls)


def test_without_a_certificate_or_with_a_strangers_a_client_is_refused(
    demands_a_certificate: Secured, certificates: Certificates, tmp_path: Path
) -> None:
    told = "online store did not answer: NoHostAvailable"
    without = certificates.tls(verify_hostname=False)
    assert_is_refused(tmp_path / "without", demands_a_certificate, told, tls=without)
    strangers = without | {"certificate": certificates.path("stranger")}
    assert_is_refused(tmp_path / "strangers", demands_a_certificate, told, tls=strangers)


def test_a_certificate_that_names_another_address_is_refused_unless_that_is_said(
    demands_a_certificate: Secured, certificates: Certificates, tmp_path: Path
) -> None:
    told = f"certificate verify failed: IP address mismatch, certificate is not valid for '{ADDRESS}'"
    tls = certificates.tls(certificate=certificates.path("client"))
    assert_is_refused(tmp_path, demands_a_certificate, told, tls=tls)
