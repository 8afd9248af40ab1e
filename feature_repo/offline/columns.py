"""The columns of a history: their names, their arrow types, and how a table is fitted to them."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
from feast import FeatureView
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.type_map import feast_value_type_to_pa
from feast.types import FeastType, from_feast_to_pyarrow_type
from feast.value_type import ValueType

TIME = pa.timestamp("us", tz="UTC")

# Feast's table by value type knows nothing of what lies inside of these; the declared type does.
NESTED = {ValueType.STRUCT, ValueType.STRUCT_LIST, ValueType.VALUE_LIST, ValueType.VALUE_SET}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a source as its files name them.

    Attributes:
        source_name: name in the view → name in the files, where they differ (the source's field mapping, reversed).
        event: column of the event time.
        created: column of the created time; empty where there is none.
    """

    source_name: Mapping[str, str]
    event: str
    created: str

    @staticmethod
    def of(source: DataSource) -> "Columns":
        names = {new: old for old, new in source.field_mapping.items()}
        event, created = source.timestamp_field, source.created_timestamp_column or ""
        return Columns(names, names.get(event, event), names.get(created, created))

    def named(self, name: str) -> str:
        return self.source_name.get(name, name)


def part_schema(feature_view: FeatureView) -> pa.Schema:
    """Columns of a part: join keys, features, event time and created time in microseconds of UTC."""
    columns = Columns.of(feature_view.batch_source)
    fields = [f for f in [*feature_view.entity_columns, *feature_view.features] if f.name != DUMMY_ENTITY_ID]
    # A join key may be declared as a feature too: it is one column.
    types = {columns.named(f.name): arrow_type(f.dtype) for f in fields}
    types |= {stamp: TIME for stamp in (columns.event, columns.created) if stamp}
    return pa.schema(types)


def arrow_type(dtype: FeastType) -> pa.DataType:
    """The arrow type in which history keeps a feature.

    Raises:
        ValueError: there is none.
    """
    kind = dtype.to_value_type()
    if kind not in NESTED:
        try:
            return feast_value_type_to_pa(kind)
        except KeyError:  # sets, and times with a zone each
            pass
    return from_feast_to_pyarrow_type(dtype)


def evolved(told: pa.Schema, declared: pa.Schema) -> pa.Schema:
    """The declared columns; one whose rows so far cannot be cast to the declared type keeps the type that it has."""
    fields = [told.field(f.name) if f.name in told.names and not _castable(told, f) else f for f in declared]
    return pa.schema(fields)


def as_told(told: pa.Schema, declared: pa.Schema) -> pa.Schema:
    """The declared columns in the types of the files, where those tell them; times in microseconds of UTC."""
    fields = [told.field(f.name) if f.name in told.names and f.type != TIME else f for f in declared]
    return pa.schema(fields)


def _castable(told: pa.Schema, field: pa.Field) -> bool:
    before = told.field(field.name).type
    try:
        pa.array([], before).cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return bool(before == field.type)
    return True


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema`, in its order and its types.

    Raises:
        ValueError: the table has other columns, or a value that its column cannot hold.
    """
    if set(table.column_names) != set(schema.names):
        raise ValueError(f"history has the columns {schema.names}, the table has {table.column_names}")
    columns = []
    for field in schema:
        column = table[field.name]
        if pa.types.is_map(field.type) and pa.types.is_struct(column.type):
            column = _as_map(column, field.type)
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"column {field.name!r}: {error}") from error
    return pa.table(columns, schema=schema)


def _as_map(column: pa.ChunkedArray, type_: pa.MapType) -> pa.ChunkedArray:
    """Structs as maps: arrow takes a frame's dictionaries for structs of all the keys there are, null where absent."""
    rows = [None if row is None else [(k, v) for k, v in row.items() if v is not None] for row in column.to_pylist()]
    try:
        return pa.chunked_array([pa.array(rows, type=type_)])
    except pa.ArrowTypeError as error:
        raise ValueError(f"a map of {type_.item_type} cannot hold a value: {error}") from error
