"""History as immutable parquet parts, one folder a view: Feast's duckdb offline store with a push that appends.

    offline_store:
      type: feature_repo.offline_store.EmbeddingOfflineStore

Stock Feast rewrites the whole file on each push, in place: a crash loses all of it, and of two pushes at once one is
lost. Here a push writes one new part and touches no other; `feature_repo.offline.compaction` makes few large parts of
many small ones without hiding a row. Any parquet reader, stock Feast among them, reads the folder. A point-in-time join
moves the positions of rows and reads each distinct row once (`feature_repo.offline.retrieval`).
"""

import warnings
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.data_source import DataSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from pydantic import NonNegativeFloat, PositiveInt, StrictStr

from feature_repo.offline.columns import Columns, part_schema
from feature_repo.offline.folder import write_part
from feature_repo.offline.parts import append, ensure_schema, folder_of, is_history, read_schema
from feature_repo.offline.pulls import pull_all, pull_latest
from feature_repo.offline.retrieval import historical_features, queried

__all__ = [
    "EmbeddingOfflineStore",
    "EmbeddingOfflineStoreConfig",
    "ensure_readable",
    "part_schema",
    "parts_folder",
    "write_part",
]

# ibis asks duckdb in its old words, and Feast has every deprecation shown: a line for each batch of history read
warnings.filterwarnings("ignore", message="fetch_arrow_table", category=DeprecationWarning)


class EmbeddingOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Settings of the plugin, beside those of Feast's duckdb offline store.

    Attributes:
        compaction_grace_seconds: how long the parts that were compacted are kept beside the new one: longer than any
            read of history takes.
        compaction_target_mb: about how large the file of a compacted part becomes.
    """

    type: Literal["feature_repo.offline_store.EmbeddingOfflineStore"] | StrictStr = (
        "feature_repo.offline_store.EmbeddingOfflineStore"
    )
    compaction_grace_seconds: NonNegativeFloat = 6 * 3600  # > a training run's longest read of history
    compaction_target_mb: PositiveInt = 256


class EmbeddingOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's duckdb offline store, appending to views whose source is a folder of parquet parts.

    A source that is a single file, or anything else, is served as stock Feast serves it.
    """

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Appends `table` as one part: durable when this returns, and seen whole or not at all.

        Raises:
            ValueError: the columns are not those of the view, or the folder is laid out as folders in folders.
            OSError: it cannot be written; nothing is left behind.
        """
        folder = folder_of(feature_view.batch_source)
        if folder is None:
            DuckDBOfflineStore.offline_write_batch(config, feature_view, table, progress)
            return
        ours = is_history(folder)
        if not ours and not folder.is_flat():
            raise ValueError(f"{folder.path} holds folders: a part of {feature_view.name!r} would not be read there")
        if table.num_rows:
            columns = Columns.of(feature_view.batch_source)
            named = table.rename_columns([columns.named(name) for name in table.column_names])
            schema = part_schema(feature_view)
            if ours:
                schema = ensure_schema(folder, schema)
            try:
                append(folder, schema, columns.event, named)
            except ValueError as error:
                raise ValueError(f"{feature_view.name!r}: {error}") from error
        if progress:
            progress(table.num_rows)

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Feast's point-in-time join; a view that nothing was pushed to yet has no rows rather than no file.

        Args:
            entity_df: a frame, or a query that DuckDB answers (stock Feast takes frames only).
            filter_by_created_timestamp: `as_served`: only rows that were created by the entity row's time.

        Raises:
            ValueError: an entity column is missing.
        """
        ours = [view for view in feature_views if _is_parts(view.batch_source)]
        if isinstance(entity_df, str):
            entity_df = queried(entity_df)
        if not ours or entity_df is None or kwargs:
            if filter_by_created_timestamp:
                kwargs["filter_by_created_timestamp"] = True
            return DuckDBOfflineStore.get_historical_features(
                config, feature_views, feature_refs, entity_df, registry, project, full_feature_names, **kwargs
            )
        return historical_features(
            config,
            feature_views,
            feature_refs,
            entity_df,
            registry,
            project,
            full_feature_names,
            filter_by_created_timestamp,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The last row of each key whose event time lies between the two, both included."""
        pull = pull_latest if _is_parts(data_source) else DuckDBOfflineStore.pull_latest_from_table_or_query
        return pull(
            config,
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows whose event time lies between the two, both included; a row that was compacted shows once."""
        pull = pull_all if _is_parts(data_source) else DuckDBOfflineStore.pull_all_from_table_or_query
        return pull(
            config,
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
        )

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """The columns of a source, which Feast asks for before each push: of the one part that tells them.

        Stock Feast lists the folder for it, and a push would cost more with each one before it.
        """
        folder = folder_of(data_source)
        if folder is not None:
            try:
                schema = read_schema(folder)
            except FileNotFoundError:
                pass
            else:
                return [(field.name, str(field.type)) for field in schema]
        columns: Iterable[tuple[str, str]] = data_source.get_table_column_names_and_types(config)
        return columns


def parts_folder(feature_view: FeatureView) -> Path | None:
    """The local folder of a view's parts; None where its source is not such a folder."""
    folder = folder_of(feature_view.batch_source)
    return Path(folder.path) if folder is not None and folder.local else None


def ensure_readable(feature_view: FeatureView) -> None:
    """Gives a view's history the part that tells its columns, so that it can be read before anything was pushed."""
    folder = folder_of(feature_view.batch_source)
    if folder is not None:
        ensure_schema(folder, part_schema(feature_view))


def _is_parts(source: DataSource | None) -> bool:
    folder = folder_of(source)
    return folder is not None and is_history(folder)
