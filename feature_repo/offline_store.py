"""History as immutable parquet parts, one folder a view: Feast's duckdb offline store with a push that appends.

Stock Feast rewrites the whole file on each push, in place: a crash loses all of it, and of two pushes at once one is
lost. Here a push writes one new part (temporary file, fsync, atomic rename) and touches no other; any parquet reader,
stock Feast among them, reads the folder.
"""

import os
import uuid
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, FileSource, RepoConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.type_map import feast_value_type_to_pa
from pydantic import StrictStr

# ibis asks duckdb in its old words, and Feast has every deprecation shown: a line for each batch of history read
warnings.filterwarnings("ignore", message="fetch_arrow_table", category=DeprecationWarning)

EMPTY_PART = "part-empty.parquet"  # carries the schema, so that a view without history can be read


class EmbeddingOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]
    """Settings of the plugin: those of Feast's duckdb offline store."""

    type: Literal["feature_repo.offline_store.EmbeddingOfflineStore"] | StrictStr = (
        "feature_repo.offline_store.EmbeddingOfflineStore"
    )


class EmbeddingOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's duckdb offline store, appending to views whose source is a folder of parquet parts.

    A source that is a single file is served as stock Feast serves it.
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
            ValueError: the columns are not those of the view.
        """
        folder = parts_folder(feature_view)
        if folder is None:
            DuckDBOfflineStore.offline_write_batch(config, feature_view, table, progress)
            return
        schema = part_schema(feature_view)
        if set(table.column_names) != set(schema.names):
            raise ValueError(
                f"history of {feature_view.name!r} has the columns {schema.names}, the table has {table.column_names}"
            )
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        write_part(folder / f"part-{stamp}-{uuid.uuid4().hex[:12]}.parquet", table.select(schema.names).cast(schema))
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
        **kwargs: Any,
    ) -> RetrievalJob:
        """Feast's point-in-time join; a view that nothing was pushed to yet has no rows rather than no file."""
        for feature_view in feature_views:
            ensure_readable(feature_view)
        return DuckDBOfflineStore.get_historical_features(
            config, feature_views, feature_refs, entity_df, registry, project, full_feature_names, **kwargs
        )


def parts_folder(feature_view: FeatureView) -> Path | None:
    """The folder of a view's parts; None where its source is not such a folder."""
    source = feature_view.batch_source
    if not isinstance(source, FileSource) or source.path.endswith(".parquet") or "://" in source.path:
        return None
    return Path(source.path)


def part_schema(feature_view: FeatureView) -> pa.Schema:
    """Columns of a part: join keys, features, event time and created time in microseconds of UTC."""
    source = feature_view.batch_source
    columns = [*feature_view.entity_columns, *feature_view.features]
    stamps = [source.timestamp_field, source.created_timestamp_column]
    return pa.schema(
        [(c.name, feast_value_type_to_pa(c.dtype.to_value_type())) for c in columns]
        + [(s, pa.timestamp("us", tz="UTC")) for s in stamps if s]
    )


def ensure_readable(feature_view: FeatureView) -> None:
    """Gives a view without history an empty part, so that its folder can be read."""
    folder = parts_folder(feature_view)
    if folder is not None and not any(folder.glob("*.parquet")):
        write_part(folder / EMPTY_PART, part_schema(feature_view).empty_table())


def write_part(path: Path, table: pa.Table) -> None:
    """Writes `table` to `path` so that it is there whole or not at all, whatever crashes when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot and another suffix: no reader of the folder takes the temporary file for a part.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The name of a file is durable only when its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
