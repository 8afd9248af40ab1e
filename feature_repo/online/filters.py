"""Feast's metadata filters: checked, evaluated here on every row, and handed to Cassandra as far as its indexes go.

What Cassandra is asked may let too many rows through, never too few: each row is evaluated here again. Comparisons are
Python's, of numbers with numbers and text with text, with two rules of their own: a feature without a value meets no
comparison, not even `ne` and `nin`; and a number is rounded to float32 before it is compared with a Float32 feature, so
that the 0.1 that was written equals the 0.1 that is asked for.
"""

import math
import operator
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from feast.filter_models import ComparisonFilter, CompoundFilter
from feast.types import Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp

from feature_repo.online.columns import Column

Filter: TypeAlias = ComparisonFilter | CompoundFilter
Getter = Callable[[str], Any]  # a key's value in one row; None where there is none
Matcher = Callable[[Getter], bool]

LONGEST_TERM = 1024  # bytes of a text that an index is asked for; longer than 8 KiB they are in none

_NUMBERS = (Int32, Int64, Float32, Float64, Bool)
_ORDERED: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_CQL = {"eq": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_FORMATS = {"int32": ">i", "int64": ">q", "seconds": ">q", "float32": ">f", "float64": ">d"}
_PACKINGS = {code: struct.Struct(form) for code, form in _FORMATS.items()}


def keys(of: Filter | None) -> set[str]:
    """The keys that a filter compares."""
    if of is None:
        return set()
    if isinstance(of, ComparisonFilter):
        return {of.key}
    return set().union(*map(keys, of.filters))


def matcher(of: Filter | None, types: Mapping[str, Any]) -> Matcher:
    """Whether a row passes. No filter, and an empty `and` or `or`, let every row pass, as in Feast's other stores.

    Args:
        types: what may be compared: features and join keys, with their Feast types.

    Raises:
        ValueError: a key that is not among `types`, or a value that its type cannot be compared with.
    """
    if of is None:
        return lambda _: True
    if isinstance(of, ComparisonFilter):
        return _comparison(of, types)
    parts = [matcher(part, types) for part in of.filters]
    if of.type == "or" and parts:
        return lambda get: any(part(get) for part in parts)
    return lambda get: all(part(get) for part in parts)


def restrictions(of: Filter | None, indexed: Mapping[str, Column], types: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """What of a filter Cassandra can answer by index: conditions in CQL with one `?` each, and what is bound to them.

    Args:
        of: a filter that `matcher` took.
        indexed: features that have an index, with their columns.
        types: as of `matcher`.
    """
    bounds: dict[str, dict[str, tuple[str, bytes]]] = {}
    for comparison in _conjuncts(of):
        column = indexed.get(comparison.key)
        if column is None or comparison.type not in _CQL:
            continue
        value = _comparable(comparison, comparison.value, types[comparison.key])
        for op, stored in _bounds(column, comparison.type, value):
            # Cassandra takes either one equality or one lower and one upper bound; the rest is evaluated here alone.
            taken = bounds.setdefault(column.name, {})
            slot = {"=": "equal", ">": "low", ">=": "low", "<": "high", "<=": "high"}[op]
            if slot not in taken and "equal" not in taken and (slot != "equal" or not taken):
                taken[slot] = (op, stored)
    return [(f'"{name}" {op} ?', stored) for name, taken in bounds.items() for op, stored in taken.values()]


def _comparison(of: ComparisonFilter, types: Mapping[str, Any]) -> Matcher:
    key = of.key
    if key not in types:
        raise ValueError(f"filter on {key!r}: allowed are {', '.join(sorted(types)) or 'no keys'}")
    if of.type in _ORDERED:
        compare, value = _ORDERED[of.type], _comparable(of, of.value, types[key])

        def ordered(get: Getter) -> bool:
            found = get(key)
            return found is not None and bool(compare(found, value))

        return ordered
    if isinstance(of.value, str | bytes) or not isinstance(of.value, Collection):
        raise ValueError(f"filter {of.type!r} on {key!r} needs a list of values, not {of.value!r}")
    values = [_comparable(of, each, types[key]) for each in of.value]

    def among(get: Getter) -> bool:
        found = get(key)
        return found is not None and (found in values) == (of.type == "in")

    return among


def _comparable(of: ComparisonFilter, value: Any, dtype: Any) -> Any:
    """The value as what a decoded feature of that type compares with."""
    if dtype == UnixTimestamp and isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if dtype in (*_NUMBERS, UnixTimestamp) and isinstance(value, Real):
        return _rounded(float(value)) if dtype == Float32 else value
    if (dtype == String and isinstance(value, str)) or (dtype == Bytes and isinstance(value, bytes)):
        return value
    allowed = {UnixTimestamp: "datetimes and seconds since 1970", String: "str", Bytes: "bytes"}
    allowed |= dict.fromkeys(_NUMBERS, "numbers")
    if dtype not in allowed:
        raise ValueError(f"filter on {of.key!r}: a feature of type {dtype} cannot be compared")
    raise ValueError(f"filter {of.type!r} on {of.key!r} has {value!r}: allowed are {allowed[dtype]} ({dtype})")


def _rounded(value: float) -> float:
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return rounded if math.isfinite(rounded) else value


def _conjuncts(of: Filter | None) -> Iterator[ComparisonFilter]:
    """Comparisons that all must hold; what stands under an `or` of several is left out."""
    if isinstance(of, ComparisonFilter):
        yield of
    elif of is not None and (of.type == "and" or len(of.filters) == 1):
        for part in of.filters:
            yield from _conjuncts(part)


def _bounds(column: Column, kind: str, value: Any) -> list[tuple[str, bytes]]:
    """A comparison as Cassandra's operators and values; none where they would not mean the same."""
    op = _CQL[kind]
    if column.code == "string":
        # An empty text is in no index, and half a surrogate pair has no UTF-8.
        text = value.encode(errors="replace")
        whole = op == "=" and 0 < len(text) <= LONGEST_TERM and text.decode() == value
        return [(op, text)] if whole else []
    if column.code == "bool":
        return [(op, bytes([value == 1]))] if op == "=" and value in (0, 1) else []
    if value == 0 and column.code in ("float32", "float64"):  # to Cassandra -0.0 is less than 0.0
        least, most = _packed(column.code, -0.0), _packed(column.code, 0.0)
        ranges = {"=": [(">=", least), ("<=", most)], ">=": [(">=", least)], "<": [("<", least)]}
        bounds = ranges.get(op, [(op, most)])
    else:
        bounds = [(op, _packed(column.code, value))]
    return [(op, stored) for op, stored in bounds if stored is not None]


def _packed(code: str, value: Any) -> bytes | None:
    """A number as the column has it; None where the column cannot hold that very number."""
    packing = _PACKINGS[code]
    try:
        whole = int(value) if packing.format in (">i", ">q") else float(value)
        stored = packing.pack(whole)
        return stored if packing.unpack(stored)[0] == value else None
    except (struct.error, OverflowError, ValueError):  # out of range; NaN has no whole
        return None
