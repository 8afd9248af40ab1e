"""Takes rows of arrow tables by number: vectors of one length a row at a time, not a float at a time."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 28  # of values: an array's offsets are of 32 bits


def take(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Rows of `table`, (M,); -1 gives nulls."""
    if len(rows) == table.num_rows and np.array_equal(rows, np.arange(len(rows))):
        return table
    columns = [_take(table[name], rows) for name in table.column_names]
    return pa.table(columns, schema=table.schema)


def matrix(column: pa.ChunkedArray) -> NDArray[np.generic] | None:
    """The lists of a column as (N, dim), without a copy where it has one chunk; None where it has no such shape.

    It has one where no list is null, none holds a null, and all have one length above 0.
    """
    chunks = [_matrix(chunk) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return None
    known = [chunk for chunk in chunks if chunk is not None]
    if len(known) < len(chunks) or len({chunk.shape[1] for chunk in known}) > 1:
        return None
    return known[0] if len(known) == 1 else np.concatenate(known)


def _matrix(lists: pa.Array) -> NDArray[np.generic] | None:
    if not pa.types.is_list(lists.type) or lists.null_count:
        return None
    if not (pa.types.is_floating(lists.type.value_type) or pa.types.is_integer(lists.type.value_type)):
        return None
    offsets = lists.offsets.to_numpy()
    dim = int(offsets[1] - offsets[0])
    values = lists.flatten()
    if dim == 0 or values.null_count or not np.array_equal(np.diff(offsets), np.full(len(lists), dim)):
        return None
    numbers: NDArray[np.generic] = values.to_numpy().reshape(len(lists), dim)
    return numbers


def _take(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.ChunkedArray:
    vectors = matrix(column)
    if vectors is not None:
        size = max(1, CHUNK_BYTES // (vectors.shape[1] * vectors.itemsize))
        pieces = [_lists(vectors, rows[i : i + size], column.type) for i in range(0, len(rows), size)]
        return pa.chunked_array(pieces, type=column.type)
    if len(column) == 0:
        return pa.chunked_array([pa.nulls(len(rows), column.type)])
    size = max(1, CHUNK_BYTES // max(1, 2 * column.nbytes // len(column)))
    chosen = pa.array(rows, mask=rows < 0)
    found = [column.take(chosen[i : i + size]) for i in range(0, len(rows), size)]
    return pa.chunked_array([chunk for each in found for chunk in each.chunks], type=column.type)


def _lists(vectors: NDArray[np.generic], rows: NDArray[np.int64], type_: pa.ListType) -> pa.Array:
    there = rows >= 0
    offsets = np.concatenate([[0], np.cumsum(there)]).astype(np.int64) * vectors.shape[1]
    values = pa.array(vectors[rows[there]].reshape(-1), type=type_.value_type)
    mask = None if there.all() else pa.array(~there)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=type_, mask=mask)


def key_codes(left: pa.Table, right: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers for the rows of two tables of the same width: equal where all columns are equal; -1 where one is null.

    The columns of `left` are cast to the types of `right`, or the other way round where they do not fit.

    Raises:
        TypeError: two columns cannot be compared.
    """
    both: NDArray[np.int64] | None = None
    for of_left, of_right in zip(left.columns, right.columns, strict=True):
        encoded = _together(of_left, of_right).dictionary_encode().combine_chunks()
        code = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        if both is None:
            both = code
            continue
        missing = (code < 0) | (both < 0)
        _, both = np.unique(both * len(encoded.dictionary) + code, return_inverse=True)
        both = np.where(missing, -1, both)
    if both is None:  # a view without entities: all rows are of one key
        both = np.zeros(left.num_rows + right.num_rows, dtype=np.int64)
    return both[: left.num_rows], both[left.num_rows :]


def _together(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    for type_ in (right.type, left.type):
        try:
            chunks = [*left.cast(type_).chunks, *right.cast(type_).chunks]
            return pa.chunked_array(chunks, type=type_)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    raise TypeError(f"join keys of the types {left.type} and {right.type} cannot be compared")
