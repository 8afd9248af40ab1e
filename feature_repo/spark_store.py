"""History on Spark, for what outgrows one machine: Feast's Spark offline store over the same parts and registry.

    offline_store:
      type: feature_repo.spark_store.PartsSparkOfflineStore

Feast's own store takes views whose source is Spark's alone. Here each view is shown to it with its parts as such a
source while it is read; the registry stays as it is, and `EmbeddingOfflineStore` reads and writes the same history
beside it. What is pushed becomes a part, as ever.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.data_source import DataSource
from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
    SparkOfflineStore,
    SparkOfflineStoreConfig,
    SparkRetrievalJob,
)
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from pydantic import StrictStr

from feature_repo.offline.canonical import canonical_keys
from feature_repo.offline.parts import current, folder_of, is_history
from feature_repo.offline_store import EmbeddingOfflineStore


class PartsSparkOfflineStoreConfig(SparkOfflineStoreConfig):  # type: ignore[misc]
    """Settings of Feast's Spark offline store: `spark_conf`, `staging_location`, `region`."""

    type: Literal["feature_repo.spark_store.PartsSparkOfflineStore"] | StrictStr = (
        "feature_repo.spark_store.PartsSparkOfflineStore"
    )


class ArrowJob(SparkRetrievalJob):  # type: ignore[misc]
    """Feast's retrieval on Spark, without a detour through pandas, which makes floats of whole numbers beside a null.

    An embedding's id has 63 bits, of which a float keeps 53: the answer would name no embedding.
    """

    @classmethod
    def of(cls, job: SparkRetrievalJob) -> "ArrowJob":
        return cls(
            job.spark_session,
            job.query,
            job.full_feature_names,
            job._config,
            job.on_demand_feature_views,
            job.metadata,
        )

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if self._should_use_staging_for_arrow():
            return self._to_arrow_via_staging()
        return self.to_spark_df().toArrow()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas(integer_object_nulls=True)
        return frame


class PartsSparkOfflineStore(SparkOfflineStore):  # type: ignore[misc]
    """Feast's Spark offline store, reading views whose source is a folder of parquet parts."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Feast's point-in-time join, on Spark; the answer's rows come in any order.

        Args:
            entity_df: a frame, whose keys of encoders' views are made canonical, in the answer too; or a Spark frame or
                a query, whose keys have to be canonical.
            filter_by_created_timestamp: `as_served`: only rows that were created by the entity row's time.

        Raises:
            ValueError: a view's source is neither a folder of parts nor Spark's.
        """
        if isinstance(entity_df, pd.DataFrame):
            entity_df = _with_canonical_keys(entity_df, feature_views)
        job = SparkOfflineStore.get_historical_features(
            config,
            [_on_spark(view) for view in feature_views],
            feature_refs,
            entity_df,
            registry,
            project,
            full_feature_names,
            filter_by_created_timestamp,
            **kwargs,
        )
        return ArrowJob.of(job)

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
        job = SparkOfflineStore.pull_latest_from_table_or_query(
            config,
            spark_source(data_source),
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
        )
        return ArrowJob.of(job)

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
        """All rows whose event time lies between the two, both included."""
        job = SparkOfflineStore.pull_all_from_table_or_query(
            config,
            spark_source(data_source),
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
        )
        return ArrowJob.of(job)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Appends `table` as one part, as `EmbeddingOfflineStore` does."""
        EmbeddingOfflineStore.offline_write_batch(config, feature_view, table, progress)

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """The columns of a source, which Feast asks for before each push."""
        return EmbeddingOfflineStore().get_table_column_names_and_types_from_data_source(config, data_source)


def spark_source(source: DataSource) -> DataSource:
    """A folder of parts as Spark reads it: the parts as they are now, without those that were compacted.

    Another source is given back as it is.
    """
    folder = folder_of(source)
    if folder is None or not is_history(folder):
        return source
    scheme = "file://" if folder.local else f"{source.path.partition('://')[0]}://"
    parts: Sequence[str] = [f"{scheme}{folder.file(name)}" for name in current(folder, folder.names())]
    return SparkSource(
        name=source.name,
        path=parts,  # Feast hands it to Spark's `load`, which takes several
        file_format="parquet",
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
        field_mapping=source.field_mapping,
    )


def _on_spark(view: FeatureView) -> FeatureView:
    shown = copy.copy(view)
    shown.batch_source = spark_source(view.batch_source)
    return shown


def _with_canonical_keys(frame: pd.DataFrame, views: Sequence[FeatureView]) -> pd.DataFrame:
    canonical = frame.copy(deep=False)
    for view in views:
        for entity in view.entity_columns:
            column = view.projection.join_key_map.get(entity.name, entity.name)
            if column in canonical.columns and pd.api.types.is_string_dtype(canonical[column]):
                keys = pa.table({column: pa.array(canonical[column], pa.string(), from_pandas=True)})
                canonical[column] = canonical_keys(view, keys)[column].to_pandas()
    return canonical
