"""Feast's historical retrieval over histories: positions are joined, each distinct row is read once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import duckdb
import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, RepoConfig
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.duckdb import _read_data_source, _write_data_source
from feast.infra.offline_stores.ibis import IbisRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage
from numpy.typing import NDArray

from feature_repo.offline.canonical import canonical_keys
from feature_repo.offline.columns import TIME, Columns
from feature_repo.offline.deletions import without_deletions
from feature_repo.offline.gather import key_codes, take
from feature_repo.offline.history import History, PartsHistory, TableHistory, read_whole
from feature_repo.offline.parts import TIE, folder_of, history_schema, is_history
from feature_repo.offline.point_in_time import NEVER, NOTHING, Rows, rows_at


class HistoricalJob(RetrievalJob):  # type: ignore[misc]
    """Feast's contract for a retrieval; each call of `to_df` or `to_arrow` reads history as it is then.

    Args:
        read: answers the table, without the on-demand features that Feast computes itself.
    """

    def __init__(
        self,
        read: Callable[[], pa.Table],
        config: RepoConfig,
        *,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        super().__init__()
        self._read = read
        self._config = config
        self._on_demand = list(on_demand_feature_views)
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        table = read_whole(self._read)
        in_engine = [view for view in self._on_demand if view.mode == "substrait"]
        if not in_engine:
            return table
        expression = ibis.memtable(table)
        for view in in_engine:
            expression = view.transform_ibis(expression, self._full_feature_names)
        return expression.to_pyarrow()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Those that Feast has to compute: others are in the table already."""
        return [view for view in self._on_demand if view.mode != "substrait"]

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Writes the table, as stock Feast does.

        Raises:
            SavedDatasetLocationAlreadyExists: something lies there, and may not be overwritten.
        """
        self._stock().persist(storage, allow_overwrite, timeout)

    def supports_remote_storage_export(self) -> bool:
        return self._config.offline_store.staging_location is not None

    def to_remote_storage(self) -> list[str]:
        return list(self._stock().to_remote_storage())

    def _stock(self) -> IbisRetrievalJob:
        settings = self._config.offline_store
        return IbisRetrievalJob(
            ibis.memtable(self._to_arrow_internal()),
            self.on_demand_feature_views,
            self._full_feature_names,
            metadata=self._metadata,
            data_source_writer=_write_data_source,
            staging_location=settings.staging_location,
            staging_location_endpoint_override=settings.staging_location_endpoint_override,
            repo_path=str(self._config.repo_path),
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of one feature view.

    Attributes:
        keys: column of the entity rows → column of the history, as its files name it.
        features: column of the answer → column of the history, as its files name it.
    """

    view: FeatureView
    columns: Columns
    keys: Mapping[str, str]
    features: Mapping[str, str]

    @staticmethod
    def of(view: FeatureView, feature_refs: Sequence[str], full_feature_names: bool) -> "Asked":
        columns = Columns.of(view.batch_source)
        prefix = f"{view.projection.name_to_use()}:"
        names = [ref.split(":")[1] for ref in feature_refs if ref.startswith(prefix)]
        base = view.projection.name_alias or view.name
        alias = view.projection.join_key_map
        keys = [c.name for c in view.entity_columns if c.name != DUMMY_ENTITY_ID]
        return Asked(
            view,
            columns,
            {alias.get(key, key): columns.named(key) for key in keys},
            {f"{base}__{name}" if full_feature_names else name: columns.named(name) for name in names},
        )


def historical_features(
    config: RepoConfig,
    feature_views: Sequence[FeatureView],
    feature_refs: Sequence[str],
    entity_df: pd.DataFrame,
    registry: BaseRegistry,
    project: str,
    full_feature_names: bool,
    as_served: bool,
) -> HistoricalJob:
    """The features that stood for each entity row at its time, in the order of the rows.

    Raises:
        ValueError: an entity column is missing.
    """
    time = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
    entities, moments = _entities(entity_df, time)
    asked = [Asked.of(view, feature_refs, full_feature_names) for view in feature_views]
    missing = sorted({key for each in asked for key in each.keys} - set(entities.column_names))
    if missing:
        raise ValueError(f"the entity rows lack the columns {missing}; they have {entities.column_names}")

    def read() -> pa.Table:
        table = entities
        for each in asked:
            found = features_at(config, each, entities, moments, as_served=as_served)
            for name, values in zip(found.column_names, found.columns, strict=True):
                table = table.append_column(found.schema.field(name), values)
        return table

    known = moments[moments != NEVER]
    ends = (
        [pd.Timestamp(t, unit="us", tz="UTC").to_pydatetime() for t in (known.min(), known.max())] if len(known) else []
    )
    return HistoricalJob(
        read,
        config,
        on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(list(feature_refs), project, registry),
        full_feature_names=full_feature_names,
        metadata=RetrievalMetadata(list(feature_refs), [c for c in entities.column_names if c != time], *ends),
    )


def features_at(
    config: RepoConfig, asked: Asked, entities: pa.Table, moments: NDArray[np.int64], *, as_served: bool
) -> pa.Table:
    """The features of one view for each of N entity rows; null where nothing stood."""
    ttl = asked.view.ttl // timedelta(microseconds=1) if asked.view.ttl else None
    history, schema = open_history(config, asked.view, *_days(moments, ttl))
    columns = asked.columns
    times = [t for t in (columns.event, columns.created) if t]
    tie = TIE if TIE in schema.names and pa.types.is_int64(schema.field(TIE).type) else None
    index = history.index([*asked.keys.values(), *([tie] if tie else [])], times)
    wanted = canonical_keys(asked.view, entities.select(list(asked.keys)))
    key, of_history = key_codes(wanted, index.select(list(asked.keys.values())))
    if tie and not as_served:
        of_history = without_deletions(asked.view, index[tie], of_history)
    rows = rows_of(index, of_history, columns, tie)
    del index  # the keys of all rows: as large as the answer, where history is long
    found = rows_at(rows, key, moments, ttl=ttl, as_served=as_served)
    distinct, place = np.unique(found, return_inverse=True)
    if len(distinct) and distinct[0] == NOTHING:
        distinct, place = distinct[1:], place - 1  # NOTHING is -1 again: no place
    values = history.values(distinct, list(dict.fromkeys(asked.features.values())))
    expanded = take(values, place)
    return pa.table(
        [expanded[source] for source in asked.features.values()],
        schema=pa.schema([pa.field(name, values.schema.field(s).type) for name, s in asked.features.items()]),
    )


def rows_of(index: pa.Table, key: NDArray[np.int64], columns: Columns, tie: str | None) -> Rows:
    """The rows of an index as numbers."""
    return Rows(
        key,
        micros(index[columns.event]),
        micros(index[columns.created]) if columns.created else None,
        pc.fill_null(index[tie], 0).to_numpy() if tie else None,
    )


def open_history(
    config: RepoConfig, view: FeatureView, earliest: date | None, latest: date | None
) -> tuple[History, pa.Schema]:
    """A view's history and its columns; read through stock Feast where its source is no folder of parts."""
    folder = folder_of(view.batch_source)
    if folder is not None and is_history(folder):
        schema = history_schema(folder, view)
        return PartsHistory(folder, schema, earliest=earliest, latest=latest), schema
    table = _read_data_source(view.batch_source, str(config.repo_path)).to_pyarrow()
    columns = Columns.of(view.batch_source)
    # Stock Feast takes a column under its mapped name too, where the files have it so.
    back = {name: columns.named(name) for name in table.column_names if columns.named(name) not in table.column_names}
    table = table.rename_columns([back.get(name, name) for name in table.column_names])
    return TableHistory(table), table.schema


def micros(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Times in microseconds of UTC as numbers, (N,); NEVER where null."""
    numbers: NDArray[np.int64] = pc.fill_null(column.cast(pa.int64()), NEVER).to_numpy()
    return numbers


def queried(query: str) -> pd.DataFrame:
    """The rows that DuckDB answers."""
    with duckdb.connect() as connection:
        frame: pd.DataFrame = connection.sql(query).to_arrow_table().to_pandas()
        return frame


def _entities(frame: pd.DataFrame, time: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """The entity rows as a table, their times in microseconds of UTC; and these as numbers, (N,)."""
    times = frame[time].infer_objects()
    if not pd.api.types.is_datetime64_any_dtype(times):
        times = pd.to_datetime(times, utc=True)
    times = times.dt.tz_localize("UTC") if times.dt.tz is None else times.dt.tz_convert("UTC")
    # Floored, not rounded: a moment's nanoseconds must not let it see the event of the microsecond after.
    stamps = pa.array(times.dt.as_unit("us") if times.dt.unit == "ns" else times).cast(TIME, safe=False)
    others = frame.drop(columns=time).reset_index(drop=True)
    table = pa.Table.from_pandas(others, preserve_index=False).replace_schema_metadata(None)
    table = table.add_column(list(frame.columns).index(time), pa.field(time, TIME), stamps)
    return table, micros(pa.chunked_array([stamps]))


def _days(moments: NDArray[np.int64], ttl: int | None) -> tuple[date | None, date | None]:
    """The first and last day of UTC that rows found at the moments can be of; None: no such bound."""
    known = moments[moments != NEVER]
    if len(known) == 0:
        return None, None
    first = None if ttl is None else _day(int(known.min()) - ttl)
    return first, _day(int(known.max()))


def _day(moment: int) -> date | None:
    try:
        return (datetime(1970, 1, 1) + timedelta(microseconds=moment)).date()
    except OverflowError:
        return None
