"""What a search asks for, checked before anything is read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast.field import Field
from feast.types import Array, Float32, Float64, String
from numpy.typing import NDArray

from feature_repo.embeddings import OOV_KEY
from feature_repo.online.columns import ValueRefused
from feature_repo.online.filters import Filter, Matcher, keys, matcher
from feature_repo.online.metrics import Metric, metric
from feature_repo.online.table import OnlineTable
from feature_repo.online.views import text_key


@dataclass(frozen=True, slots=True)
class Search:
    """A search of one view.

    Attributes:
        table: where its rows are.
        features: what is answered of each row.
        reads: what is read of each row: `features` first, then what it is found by.
        types: what filters may compare: features and join keys, with their Feast types.
        join_keys: those that are in a row's key.
        filters: as given; `matches` evaluates them.
        vector: the feature that is searched by; "" where there is no query vector.
        query: (dim,) float64, or None.
        metric: how near is measured.
        words: what the row's text must hold, casefolded; empty where there are no keywords.
        texts: the string features.
        top_k: rows at most.
        oldest: event time in µs before which a row counts as missing.
        hidden: the key of a row that no search finds, the OOV embedding of an encoder's view.
    """

    table: OnlineTable
    features: tuple[str, ...]
    reads: tuple[str, ...]
    types: Mapping[str, Any]
    join_keys: frozenset[str]
    filters: Filter | None
    matches: Matcher
    vector: str
    query: NDArray[np.float64] | None
    metric: Metric
    words: frozenset[str]
    texts: tuple[str, ...]
    top_k: int
    oldest: int
    hidden: bytes | None

    @classmethod
    def of(
        cls,
        view: Any,
        table: OnlineTable,
        requested: Sequence[str] | None,
        embedding: Sequence[float] | None,
        top_k: int,
        distance_metric: str | None = None,
        query_string: str | None = None,
        filters: Filter | None = None,
        *,
        oldest: int,
    ) -> "Search":
        """Raises ValueError for what cannot be asked; the message says what can."""
        if embedding is None and query_string is None:
            raise ValueError(f"a search of {view.name!r} needs a vector, keywords (query_string), or both")
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}: at least 1")
        # Feast lists some join keys among the features too, where they are never written.
        join_keys = {column.name: column.dtype for column in getattr(view, "entity_columns", [])}
        types = {field.name: field.dtype for field in view.features} | join_keys
        texts = tuple(field.name for field in view.features if field.dtype == String)
        features = tuple(dict.fromkeys(name for name in requested or () if name in table.columns))
        vector, how, query = "", metric(distance_metric), None
        if embedding is not None:
            field = vector_field(view)
            vector = field.name
            how = metric(distance_metric or field.vector_search_metric)
            query = _query(embedding, field, how)
        words = frozenset(words_of(query_string or ""))
        if query_string is not None and not words:
            raise ValueError(f"query_string {query_string!r} has no words: a word is letters, digits and underscores")
        if words and not texts:
            raise ValueError(f"feature view {view.name!r} has no String feature to look for keywords in")
        compared = sorted(keys(filters) & table.columns.keys() - join_keys.keys())
        found_by = [*([vector] if vector else []), *(texts if words else ()), *compared]
        return cls(
            table=table,
            features=features,
            reads=tuple(dict.fromkeys([*features, *found_by])),
            types=types,
            join_keys=frozenset(join_keys),
            filters=filters,
            matches=matcher(filters, types),
            vector=vector,
            query=query,
            metric=how,
            words=words,
            texts=texts,
            top_k=top_k,
            oldest=oldest,
            hidden=text_key(next(iter(join_keys)), OOV_KEY) if len(join_keys) == 1 else None,
        )

    def why_no_index(self, *, vector_enabled: bool, most: int) -> str | None:
        """Why every row has to be read, for messages; None where an index can answer, with `most` rows."""
        if self.words:
            return "keywords are in no index"
        index = next((each for each in self.table.indexes if each.metric and each.feature == self.vector), None)
        if index is None or index.metric is None or not vector_enabled:
            return f"{self.vector!r} has no index"
        if index.metric != self.metric:
            return f"the index of {self.vector!r} is of {index.metric.name}, and {self.metric.name} is asked for"
        return None if self.top_k <= most else f"no index gives more than {most} rows"


def vector_field(view: Any) -> Field:
    """The vector of a view: the one with `vector_index`, or else the one with `vector_length`.

    Raises:
        ValueError: there is none, or more than one.
    """
    vectors = [field for field in view.features if field.dtype in (Array(Float32), Array(Float64))]
    indexed = [field for field in vectors if field.vector_index]
    found = indexed or [field for field in vectors if field.vector_length]
    if len(found) != 1:
        raise ValueError(
            f"feature view {view.name!r} has {', '.join(field.name for field in found) or 'no vector'} to search by: it"
            " needs one Array(Float32) with vector_index=True"
        )
    return found[0]


def words_of(text: str) -> list[str]:
    """The words of a text, casefolded."""
    return re.findall(r"\w+", text.casefold())


def _query(embedding: Sequence[float], field: Field, how: Metric) -> NDArray[np.float64]:
    query = np.asarray(embedding, dtype=np.float64)
    if query.ndim != 1 or not len(query) or (field.vector_length and len(query) != field.vector_length):
        declared = f"one row of {field.vector_length or 'one or more'} floats"
        raise ValueError(f"the query has shape {query.shape}: {field.name!r} is searched with {declared}")
    try:
        with np.errstate(over="ignore"):
            how.check(query.astype(np.float32))
    except ValueRefused as error:
        raise ValueError(f"the query is {error}") from error
    return query
