"""The connection to Cassandra that the settings of the online store describe."""

import socket
import ssl
from dataclasses import dataclass
from typing import Any

from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import (
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    RetryPolicy,
    TokenAwarePolicy,
)
from cassandra.protocol import ConfigurationException
from cassandra.query import tuple_factory

from feature_repo.online.config import OnlineSettings
from feature_repo.online.statements import RawProtocolHandler

READ = "read"
WRITE = "write"
TOKEN_AWARE = "TokenAwarePolicy(DCAwareRoundRobinPolicy)"  # noqa: S105 - of a key's token

# The driver's own wait doubles to ten minutes and ends for good after 64 attempts: a long outage would outlast itself.
RECONNECT_SECONDS = (1.0, 10.0)  # between two attempts at a node that is down: the first, the longest
# A node that hangs keeps its connections, so only a heartbeat tells. Until then every statement whose first replica it
# is fails after `request_timeout`, or costs `speculative_delay`; with the driver's 30 s that lasts for up to 90 s.
HEARTBEAT_SECONDS = 10.0  # between two to an idle connection, and for an answer: > a pause of Java's garbage collection
# The driver leaves Nagle's algorithm on, which holds a query back until the one before it was acknowledged.
SOCKET_OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
EXECUTOR_THREADS = 8  # retries leave from these; of the driver's 2, each attempt to reach a hung node holds one for 5 s
SCHEMA_SECONDS = 60.0  # a change of schema waits until every node has it


class StoreMisconfigured(ValueError):
    """Settings of the online store that contradict each other; the message says which and what is allowed."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster and its session, with the execution profiles READ and WRITE."""

    cluster: Any
    session: Any


def connect_to(config: OnlineSettings) -> Connection:
    """Connects, to no keyspace: statements name theirs.

    Raises:
        StoreMisconfigured: the settings contradict each other.
        cassandra.DriverException, NoHostAvailable, OSError: no node can be used.
    """
    cluster = Cluster(**cluster_options(config))
    try:
        session = cluster.connect()
    except BaseException:
        cluster.shutdown()
        raise
    session.client_protocol_handler = RawProtocolHandler
    session.use_client_timestamp = False  # rows carry their own
    return Connection(cluster, session)


def cluster_options(config: OnlineSettings) -> dict[str, Any]:
    """Arguments of the driver's Cluster.

    Raises:
        StoreMisconfigured: the settings contradict each other.
    """
    contacts = _contacts(config)
    read_dc, write_dc = _data_centres(config)
    if config.read_consistency == "ANY":
        raise StoreMisconfigured("`read_consistency: ANY` is no consistency of reads; `write_consistency` may be ANY")
    return contacts | {
        "port": config.port or 9042,
        "auth_provider": _credentials(config),
        "ssl_context": _tls(config),
        "protocol_version": config.protocol_version,
        "compression": "lz4" if config.compression else False,
        "execution_profiles": {
            EXEC_PROFILE_DEFAULT: _profile(config, config.read_consistency, read_dc),
            READ: _profile(config, config.read_consistency, read_dc),
            WRITE: _profile(config, config.write_consistency, write_dc),
        },
        "reconnection_policy": ExponentialReconnectionPolicy(*RECONNECT_SECONDS, max_attempts=None),
        "connection_class": _WideConnection,
        "sockopts": SOCKET_OPTIONS,
        "idle_heartbeat_interval": HEARTBEAT_SECONDS,
        "idle_heartbeat_timeout": HEARTBEAT_SECONDS,
        "executor_threads": EXECUTOR_THREADS,
    }


def create_keyspace(session: Any, config: OnlineSettings) -> None:
    """Creates the keyspace where the settings say how it is to be replicated; one that stands is left as it is.

    Raises:
        StoreMisconfigured: it does not stand, and nothing says how to replicate it; or Cassandra has not these centres.
    """
    if config.replication is not None:
        options = {"class": "NetworkTopologyStrategy", **config.replication}
        written = ", ".join(f"'{name}': '{value}'" for name, value in options.items())
        try:
            session.execute(
                f'CREATE KEYSPACE IF NOT EXISTS "{config.keyspace}" WITH replication = {{{written}}}',
                timeout=SCHEMA_SECONDS,
            )
        except ConfigurationException as error:
            raise StoreMisconfigured(f"`replication: {config.replication}` is refused: {error.message}") from error
        return
    rows = session.execute(
        "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = %s", (config.keyspace,)
    )
    if not list(rows):
        raise StoreMisconfigured(
            f"Cassandra has no keyspace {config.keyspace!r}: create it, or say under `online_store:` how it is to be "
            "replicated, as in `replication: {datacenter1: 3}`"
        )


class _WideConnection(Cluster.connection_class):  # type: ignore[misc]
    """The driver's connection, which moves 4 KiB at a time: a chunk of embeddings is a hundred times as long."""

    in_buffer_size = 256 * 1024
    out_buffer_size = 64 * 1024


class IdempotentRetries(RetryPolicy):  # type: ignore[misc]
    """Asks the next node, `retries` times: every statement of this store may be executed twice."""

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def _decide(self, retry_num: int) -> tuple[int, None]:
        return (self.RETRY_NEXT_HOST if retry_num < self._retries else self.RETHROW), None

    def on_read_timeout(self, query: Any, consistency: Any, *args: Any, retry_num: int, **kwargs: Any) -> Any:
        return self._decide(retry_num)

    def on_write_timeout(self, query: Any, consistency: Any, *args: Any, retry_num: int, **kwargs: Any) -> Any:
        return self._decide(retry_num)

    def on_unavailable(self, query: Any, consistency: Any, *args: Any, retry_num: int, **kwargs: Any) -> Any:
        return self._decide(retry_num)

    def on_request_error(self, query: Any, consistency: Any, error: Any, retry_num: int) -> Any:
        return self._decide(retry_num)


def _contacts(config: OnlineSettings) -> dict[str, Any]:
    given = [name for name in ("hosts", "secure_bundle_path", "datacenters") if getattr(config, name)]
    if len(given) != 1:
        raise StoreMisconfigured(
            "`online_store:` needs one of `hosts`, `secure_bundle_path` and `datacenters`;"
            f" it has {' and '.join(given) or 'none'}"
        )
    if config.hosts:
        return {"contact_points": config.hosts}
    if config.secure_bundle_path:
        if config.tls is not None:
            raise StoreMisconfigured("a `secure_bundle_path` brings its own TLS: leave out `tls`")
        return {"cloud": {"secure_connect_bundle": config.secure_bundle_path}}
    hosts = [host for centre in config.datacenters or () for host in centre.hosts]
    if not hosts:
        raise StoreMisconfigured("none of `datacenters` has `hosts`")
    return {"contact_points": hosts}


def _data_centres(config: OnlineSettings) -> tuple[str | None, str | None]:
    """Where reads and writes go; None is the data centre of the contact points."""
    local = config.load_balancing.local_dc if config.load_balancing else None
    if not config.datacenters:
        if config.routing:
            raise StoreMisconfigured("`routing` needs `datacenters`")
        return local, local
    names = [centre.name for centre in config.datacenters]
    default = local or names[0]
    read = (config.routing and config.routing.read_dc) or default
    write = (config.routing and config.routing.write_dc) or default
    for chosen in (read, write):
        if chosen not in names:
            raise StoreMisconfigured(f"data centre {chosen!r} is not among `datacenters`: {', '.join(names)}")
    return read, write


def _profile(config: OnlineSettings, consistency: str, data_centre: str | None) -> ExecutionProfile:
    policy = DCAwareRoundRobinPolicy(data_centre) if data_centre else DCAwareRoundRobinPolicy()
    named = config.load_balancing.load_balancing_policy if config.load_balancing else TOKEN_AWARE
    if named not in (TOKEN_AWARE, "DCAwareRoundRobinPolicy"):
        raise StoreMisconfigured(f"load_balancing_policy {named!r}: allowed are {TOKEN_AWARE}, DCAwareRoundRobinPolicy")
    speculation = {}
    if config.speculative_delay is not None:
        if config.speculative_delay >= config.request_timeout:
            raise StoreMisconfigured(
                f"`speculative_delay: {config.speculative_delay}` never comes before "
                f"`request_timeout: {config.request_timeout}`"
            )
        speculation["speculative_execution_policy"] = ConstantSpeculativeExecutionPolicy(
            config.speculative_delay, config.speculative_attempts
        )
    return ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(policy) if named == TOKEN_AWARE else policy,
        retry_policy=IdempotentRetries(config.retries),
        consistency_level=ConsistencyLevel.name_to_value[consistency],
        request_timeout=config.request_timeout,
        row_factory=tuple_factory,
        **speculation,
    )


def _credentials(config: OnlineSettings) -> PlainTextAuthProvider | None:
    if (config.username is None) != (config.password is None):
        raise StoreMisconfigured("`username` and `password` are given both or not at all")
    return None if config.username is None else PlainTextAuthProvider(config.username, config.password)


def _tls(config: OnlineSettings) -> ssl.SSLContext | None:
    tls = config.tls
    if tls is None:
        return None
    if tls.key is not None and tls.certificate is None:
        raise StoreMisconfigured("`tls`: a `key` needs the `certificate` that it belongs to")
    try:
        context = ssl.create_default_context(cafile=tls.ca_certificate)
        context.check_hostname = tls.verify_hostname
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key, password="")  # without one OpenSSL asks at the terminal
    except OSError as error:  # ssl.SSLError is one
        raise StoreMisconfigured(f"`tls`: a certificate or key cannot be used: {error}") from error
    return context
