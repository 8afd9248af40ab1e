"""Settings, from the environment (`EMBARK_KAFKA_PORT=9192`) or the file `embark.toml`: read here and nowhere else."""

import json
import os
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from encoders.signing import HostSecret

SETTINGS_FILE = "embark.toml"
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
    retina_address: str = Field("127.0.0.1:50061", description="where Retina listens, and KFC finds it")
    embark_metrics: str = Field("", pattern=ADDRESS, description="where EmbArk tells its metrics, as 127.0.0.1:9461")
    retina_metrics: str = Field("", pattern=ADDRESS, description="where Retina tells its metrics")
    kfc_metrics: str = Field("", pattern=ADDRESS, description="where KFC tells its metrics")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where Retina computes")
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
