"""Settings, from the environment (`EMBARK_KAFKA_PORT=9192`) or the file `embark.toml`: read here and nowhere else."""

import json
import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from encoders.signing import HostSecret

SETTINGS_FILE = "embark.toml"
OF_FEAST = (
    "PROMETHEUS_MULTIPROC_DIR"  # Feast sets it in processes that import its server: metrics would lie in its files
)
Root = Annotated[str, Field(pattern=r"^(file:///[^?#]*|s3://[^/?#]+(/[^?#]*)?)\z")]
Host = Annotated[str, Field(pattern=r"^[a-z0-9.-]+(:[0-9]{1,5})?\z")]
ADDRESS = r"^(.+:[0-9]{1,5})?\z"  # or nothing


class Settings(BaseSettings):
    """What can be set; the environment wins over `embark.toml` in the working directory.

    Raises:
        pydantic.ValidationError: a value that is not allowed, or a name in the file that is not known.
    """

    model_config = SettingsConfigDict(env_prefix="EMBARK_", toml_file=SETTINGS_FILE, extra="forbid", frozen=True)

    repo: Path = Field(Path("feature_repo"), description="folder of feature_store.yaml")
    state: Path = Field(Path(".embark"), description="of `embark up`: data, logs, process ids; where backfills stopped")
    kafka_port: int = Field(9092, ge=1, le=65535, description="port of the local Kafka")
    cassandra_port: int = Field(9042, ge=1, le=65535, description="port of the local Cassandra")
    keyspace: str = Field("embark", pattern=r"^[a-z][a-z0-9_]{0,47}\z", description="keyspace that `embark up` creates")
    embark_address: str = Field("127.0.0.1:50051", description="where EmbArk listens, and clients find it")
    retina_address: str = Field(
        "127.0.0.1:50061", description="where Retina listens, and KFC finds it; for KFC, several separated by commas"
    )
    embark_metrics: str = Field("", pattern=ADDRESS, description="where EmbArk tells its metrics, as 127.0.0.1:9461")
    retina_metrics: str = Field("", pattern=ADDRESS, description="where Retina tells its metrics")
    kfc_metrics: str = Field("", pattern=ADDRESS, description="where KFC tells its metrics")
    console_address: str = Field("127.0.0.1:8080", pattern=r"^.+:[0-9]{1,5}\z", description="where the console listens")
    console_token: str = Field(
        "",
        pattern=r"^([!-~]{16,})?\z",
        repr=False,
        description="lets people change things in the console; 16 characters",
    )
    console_hosts: list[str] = Field(
        [], description="names beside localhost by which browsers ask a console on this machine, as behind a proxy"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where Retina computes")
    retina_warm: list[str] = Field([], description="views that Retina loads and runs before it says that it is ready")
    retina_memory_mb: int = Field(
        0, ge=0, description="of encoders' parameters that Retina holds; the least recently used go; 0: no limit"
    )
    retina_batch: int = Field(0, ge=0, le=4096, description="most inputs of a pass; 0: what suits the device")
    retina_batch_ms: float | None = Field(
        None, ge=0, le=1000, description="for which an input waits to share its pass; what suits the device unless set"
    )
    retina_keys_at_hand: int = Field(4096, ge=1, description="keys of all calls, beyond which Retina says it is busy")
    retina_compile: bool = Field(False, description="whether torch compiles the networks; needs a C++ compiler")
    retina_grace_seconds: float = Field(20.0, ge=0, description="that calls at hand are given when Retina stops")
    retina_reflection: bool = Field(True, description="whether Retina describes its services to tools as grpcurl")
    fetch_networks: list[IPv4Network | IPv6Network] = Field(
        [], description="private networks that Retina may download from, as 127.0.0.0/8; none by default"
    )
    fetch_max_bytes: int = Field(20 << 20, ge=1, le=1 << 30, description="of one file that Retina downloads")
    fetch_seconds: float = Field(10.0, gt=0, le=600, description="for one file with its redirects, once it is its turn")
    fetch_concurrency: int = Field(64, ge=1, le=4096, description="downloads at a time; x fetch_max_bytes is memory")
    fetch_per_host: int = Field(8, ge=1, le=4096, description="downloads at a time from one host")
    fetch_user_agent: str = Field(
        "EmbArk-Retina/0.1", pattern=r"^[!-~]([ -~]*[!-~])?\z", description="what Retina says it is"
    )
    fetch_data_urls: bool = Field(False, description="whether URLs may carry their content (data:)")
    fetch_roots: list[Root] = Field(
        [], description="folders and prefixes that Retina may read: file:///srv/pictures, s3://bucket/pictures"
    )
    fetch_s3_endpoint: str = Field("", description="URL of a server that speaks S3, in the place of Amazon's")
    fetch_secrets: dict[Host, HostSecret] = Field(
        {}, repr=False, description="host → the header that it is to be shown; see docs/fetching.md"
    )
    allowed_modules: list[str] = Field(
        [],
        description="Python modules whose networks may run, and those below them; none by default",
    )
    rank_budget: float = Field(0.2, gt=0, description="seconds in which `embark rank` answers, embeddings or not")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="of the three servers")
    traces: str = Field(
        "", pattern=r"^(https?://[^ ]+)?\z", description="collector (OTLP over gRPC), as http://127.0.0.1:4317"
    )
    traces_share: float = Field(
        0.01, ge=0, le=1, description="of calls that are traced, where their caller does not say"
    )
    log_format: Literal["text", "json"] = Field("text", description="json: an object a line, for programs")

    processes: int = Field(1, ge=1, le=256, description="of EmbArk, on one port")
    hot_cache_mb: float = Field(256, ge=0, description="of vectors in memory, for each view in each process of EmbArk")
    hot_cache_seconds: float = Field(300, gt=0, description="after which a hot vector is read again in any case")
    lookup_budget_ms: float = Field(2000, gt=0, description="of a look-up; what the store has not told is UNAVAILABLE")
    max_calls: int = Field(128, ge=1, description="that a process of EmbArk answers at a time; more are refused")
    requests_per_second: float = Field(5000, gt=0, description="for missing keys, of each process of EmbArk")
    drain_seconds: float = Field(0, ge=0, description="for which an ending EmbArk tells balancers before it stops")
    reflection: bool = Field(True, description="whether EmbArk tells clients such as grpcurl what there is to call")
    tls_certificate: Path | None = Field(None, description="PEM of EmbArk's server; plain text without it")
    tls_key: Path | None = Field(None, description="PEM of its private key")
    tls_client_ca: Path | None = Field(None, description="PEM: clients must show a certificate of this authority")
    plaintext: bool = Field(False, description="listen without TLS where other machines can reach")
    callers: Path | None = Field(None, description="file of callers and their tokens; anybody may call without it")
    client_token: str = Field("", repr=False, description="of `embark lookup`, where EmbArk asks for one")
    client_ca: Path | None = Field(
        None, description="PEM of the authority of EmbArk's certificate; for `embark lookup`"
    )
    client_certificate: Path | None = Field(None, description="PEM that `embark lookup` shows")
    client_key: Path | None = Field(None, description="PEM of its private key")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def overridden(self, options: Mapping[str, object]) -> Self:
        """These settings with the options that were given, checked as settings are; one that is empty was not.

        Raises:
            ValidationError: one cannot be so.
        """
        return self.model_validate(self.model_dump() | {name: value for name, value in options.items() if value})

    def as_environment(self) -> dict[str, str]:
        """The environment of a child process that is to have these very settings."""
        values: Mapping[str, object] = self.model_dump(mode="json")
        inherited = {name: value for name, value in os.environ.items() if name != OF_FEAST}
        return inherited | {
            f"EMBARK_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
            if value is not None
        }
