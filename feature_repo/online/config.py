"""Settings of the online store: what stands under `online_store:` in feature_store.yaml."""

from typing import Literal

from feast.infra.online_stores.cassandra_online_store.cassandra_online_store import CassandraOnlineStoreConfig
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field, StrictStr

Consistency = Literal["ANY", "ONE", "TWO", "THREE", "QUORUM", "ALL", "LOCAL_QUORUM", "EACH_QUORUM", "LOCAL_ONE"]


class TlsConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """TLS between this store and Cassandra: PEM files."""

    ca_certificate: StrictStr | None = None
    """Whom to trust; the system's authorities where none is given."""

    certificate: StrictStr | None = None
    """Our own certificate, where Cassandra asks for one."""

    key: StrictStr | None = None
    """Its key, where that is not in the same file."""

    verify_hostname: bool = True
    """Whether the certificate must name the address that is connected to."""


class OnlineSettings(CassandraOnlineStoreConfig):  # type: ignore[misc]
    """Settings: those of Feast's Cassandra store, and these."""

    protocol_version: int = 4
    """Every Cassandra since 2.2 speaks it. In 5 the driver adds checksums to all that it reads, computed in Python."""

    request_timeout: float = Field(default=5.0, gt=0)
    """Seconds that one statement may take, reads and writes alike."""

    read_consistency: Consistency = "LOCAL_QUORUM"
    write_consistency: Consistency = "LOCAL_QUORUM"

    read_chunk_size: int = Field(default=200, ge=1, le=1000)
    """Keys to one query."""

    read_concurrency: int = Field(default=32, ge=1)
    """Queries in flight of one read."""

    write_concurrency: int = Field(default=256, ge=1)
    """Rows in flight of one write; at most 64 where the table has a vector index, which is slow to add to."""

    retries: int = Field(default=2, ge=0)
    """How often a statement that a node did not carry out is given to the next."""

    speculative_delay: float | None = Field(default=None, gt=0)
    """Seconds after which a second node is asked beside a slow one; none is where this is not given."""

    speculative_attempts: int = Field(default=1, ge=1)
    """How many more nodes are asked so."""

    tls: TlsConfig | None = None

    compression: bool = False
    """Whether the protocol is compressed (lz4): embeddings do not get smaller by it."""

    replication: dict[str, int] | None = None
    """Data centre → copies: `feast apply` creates the keyspace so, where it does not stand."""

    expire_rows: bool = True
    """Whether a row older than its view's `ttl` reads as missing, as in history; Feast's own stores serve it."""

    key_ttl_seconds: int | None = Field(default=None, ge=1, le=20 * 365 * 86_400)
    """Seconds after it was written, to the second, in which Cassandra removes a row, as in Feast's Redis store."""

    drop_removed_tables: bool = False
    """Whether `feast apply` drops the tables of views that are no longer declared; else `embark tables` lists them."""

    vector_enabled: bool = True
    """Whether `feast apply` builds a search index for fields with `vector_index=True`; without, a search reads all."""

    vector_scan_limit: int = Field(default=100_000, ge=1)
    """Rows that a search may read where no index can answer it."""
