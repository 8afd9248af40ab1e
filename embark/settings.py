"""Settings, from the environment (`EMBARK_KAFKA_PORT=9192`) or the file `embark.toml`: read here and nowhere else."""

import json
import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

SETTINGS_FILE = "embark.toml"
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
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where Retina computes")
    retina_warm: list[str] = Field([], description="views that Retina loads and runs before it says that it is ready")
    retina_memory_mb: int = Field(
        0, ge=0, description="of encoders' parameters that Retina holds; the least recently used go; 0: no limit"
    )
    retina_batch: int = Field(0, ge=0, le=4096, description="most inputs of a pass; 0: what suits the device")
    retina_batch_ms: float = Field(5.0, ge=0, le=1000, description="for which an input waits to share its pass")
    retina_keys_at_hand: int = Field(4096, ge=1, description="keys of all calls, beyond which Retina says it is busy")
    retina_compile: bool = Field(False, description="whether torch compiles the networks; needs a C++ compiler")
    retina_grace_seconds: float = Field(20.0, ge=0, description="that calls at hand are given when Retina stops")
    retina_reflection: bool = Field(True, description="whether Retina describes its services to tools as grpcurl")
    fetch_networks: list[IPv4Network | IPv6Network] = Field(
        [], description="private networks that Retina may download from, as 127.0.0.0/8; none by default"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="of the three servers")

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

    def as_environment(self) -> dict[str, str]:
        """The environment of a child process that is to have these very settings."""
        values: Mapping[str, object] = self.model_dump(mode="json")
        return dict(os.environ) | {
            f"EMBARK_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
