"""What Feast's universal tests of offline stores run on: stock duckdb on files, ours on the same files, ours on parts.

Feast imports this module where `FULL_REPO_CONFIGS_MODULE` names it: inside its own test run, where `tests` is Feast's
package and not ours; so it stands alone and reads the environment that the runner (`__main__.py`) sets.
"""

import os
import tempfile
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import FileSource
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig

from feature_repo.offline.folder import Folder
from feature_repo.offline.parts import SCHEMA_PART
from feature_repo.offline_store import EmbeddingOfflineStoreConfig
from tests.universal.feature_repos import repo_configuration
from tests.universal.feature_repos.universal.data_sources.file import FileDataSourceCreator


class Stock(FileDataSourceCreator):
    """Feast's duckdb store on single files."""

    def create_data_source(self, *args: Any, **kwargs: Any) -> FileSource:
        source = super().create_data_source(*args, **kwargs)
        source.table = f"'{source.path}'"  # what a query of Feast's tests selects from: DuckDB reads it so
        return source

    def create_offline_store_config(self) -> Any:
        return DuckDBOfflineStoreConfig()


class Files(Stock):
    """Ours on single files, which it leaves to stock Feast."""

    def create_offline_store_config(self) -> Any:
        return EmbeddingOfflineStoreConfig()


class Parts(Files):
    """Ours on folders of parts: each source is three of them."""

    def create_data_source(
        self,
        df: pd.DataFrame,
        destination_name: str,
        created_timestamp_column: str = "created_ts",
        field_mapping: dict[str, str] | None = None,
        timestamp_field: str | None = "ts",
    ) -> FileSource:
        path = tempfile.mkdtemp(prefix=f"{self.project_name}_{destination_name}")
        self.dirs.append(path)
        folder = Folder.at(path)
        table = pa.Table.from_pandas(df, preserve_index=False).replace_schema_metadata(None)
        folder.write(SCHEMA_PART, table.schema.empty_table())
        third = -(-table.num_rows // 3)
        for i in range(3):
            folder.write(f"part-{i}.parquet", table.slice(i * third, third))
        source = FileSource(
            file_format=ParquetFormat(),
            path=path,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping or {"ts_1": "ts"},
        )
        source.table = f"'{path}/*.parquet'"
        return source


SOURCES = {("stock", "files"): Stock, ("plugin", "files"): Files, ("plugin", "parts"): Parts}
tested = ("local", SOURCES[os.environ["UNIVERSAL_STORE"], os.environ["UNIVERSAL_NAME"]])
AVAILABLE_OFFLINE_STORES = [tested]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}
# Some tests are for the "file" store only, which is Feast's dask: they shall run on the store that is tested here.
repo_configuration.OFFLINE_STORE_TO_PROVIDER_CONFIG["file"] = tested
