"""Storage-attached indexes (SAI) of a feature view's table: one on a vector to search by, others to filter by.

A table gets them when one of its vectors is declared with `vector_index=True` and a `vector_length`. An index is named
by what it is, so that one that is declared otherwise has another name: the old one goes, the new one comes.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from feast.protos.feast.types.Value_pb2 import Value

from feature_repo.online.columns import INDEXABLE_NAME, Column
from feature_repo.online.metrics import Metric, metric

FILTERABLE = ("int32", "int64", "float32", "float64", "bool", "seconds", "string")  # codes of columns; SAI has no blobs


@dataclass(frozen=True, slots=True)
class SearchIndex:
    """An index on one column.

    Attributes:
        name: unique in the keyspace.
        feature: whose column it is on.
        column: the column's name.
        metric: of a vector; None of a scalar.
    """

    name: str
    feature: str
    column: str
    metric: Metric | None = None

    def create(self, table: str) -> str:
        options = (
            "" if self.metric is None else f" WITH OPTIONS = {{'similarity_function': '{self.metric.similarity}'}}"
        )
        return (
            f'CREATE CUSTOM INDEX IF NOT EXISTS "{self.name}" ON {table} ("{self.column}")'
            f" USING 'StorageAttachedIndex'{options}"
        )


def indexes(table: str, fields: Iterable[Any], columns: Mapping[str, Column]) -> tuple[SearchIndex, ...]:
    """The indexes of a table: none, or those on its indexed vectors, and those on its scalars.

    A column whose name is too long or too strange has none, and neither has a vector that is searched by L1: a search
    then does without.

    Raises:
        ValueError: an unknown `vector_search_metric`.
    """
    vectors = []
    for field in fields:
        column = columns[field.name]
        if column.dim and field.vector_index and INDEXABLE_NAME.fullmatch(column.name):
            declared = metric(field.vector_search_metric)
            if declared.similarity is not None:
                vectors.append(_index(table, column, declared))
    scalars = [
        _index(table, column)
        for column in columns.values()
        if column.code in FILTERABLE and INDEXABLE_NAME.fullmatch(column.name)
    ]
    # Vectors last: Cassandra goes on building an index after the statement, and the next statement waits for it.
    return (*scalars, *vectors) if vectors else ()


def checked(column: Column, of: Metric) -> Column:
    """The column with an `encode` that refuses what an index of that metric cannot hold."""

    def encode(value: Value) -> bytes:
        stored = column.encode(value)
        of.check(np.frombuffer(stored, ">f4").astype(np.float32))
        return stored

    return replace(column, encode=encode, check=None)


def changes(
    keyspace: str, table_name: str, table: str, wanted: Collection[SearchIndex], existing: Collection[str]
) -> list[str]:
    """Statements after which the table's indexes are `wanted`; what is not ours by its name stays.

    Drops come first: Cassandra takes no second index on one column.

    Args:
        keyspace: quoted.
        table_name, table: plain, and in full for statements.
        existing: names of the indexes that the table has.
    """
    names = {index.name for index in wanted}
    stale = [name for name in sorted(existing) if name.startswith(_prefix(table_name)) and name not in names]
    return [
        *(f'DROP INDEX IF EXISTS {keyspace}."{name}"' for name in stale),
        *(index.create(table) for index in wanted if index.name not in existing),
    ]


def _index(table: str, column: Column, of: Metric | None = None) -> SearchIndex:
    what = f"{column.name}\0{of.similarity}" if of is not None else column.name
    return SearchIndex(_prefix(table) + _digest(what), column.feature, column.name, of)


def _prefix(table: str) -> str:
    return f"search_{_digest(table)}_"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
