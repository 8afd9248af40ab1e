"""What `embark encode` writes: parquet, a part at a time, or one numpy matrix."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.spec import EncoderSpec

KINDS = (".parquet", ".npy")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedRow:
    """One input; `vector` (dim,) float32, or None with the error's name and message."""

    given: str
    vector: NDArray[np.float32] | None
    error: str
    content_hash: bytes


class EncodedFile(Protocol):
    """Rows in order of the inputs; the file is there whole when the context is left, or not at all."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def add(self, rows: Sequence[EncodedRow]) -> None: ...


def encoded_file(path: Path, spec: EncoderSpec) -> EncodedFile:
    """The file for a path: `.parquet` or `.npy`."""
    return ParquetFile(path, spec) if path.suffix == ".parquet" else NumpyFile(path, spec)


class ParquetFile:
    """Columns `input`, `embedding` (null where it failed), `error` (null where it did not), `content_hash` (hex).

    The metadata say which encoder it was: `embark.view`, `embark.fingerprint`, `embark.weights`.
    """

    def __init__(self, path: Path, spec: EncoderSpec) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.{os.getpid()}.part")
        names = {"view": spec.view, "fingerprint": spec.fingerprint, "weights": spec.pinned}
        self._schema = pa.schema(
            [
                ("input", pa.string()),
                ("embedding", pa.list_(pa.float32())),
                ("error", pa.string()),
                ("content_hash", pa.string()),
            ],
            metadata={f"embark.{name}": value for name, value in names.items()},
        )

    def __enter__(self) -> Self:
        self._writer = pq.ParquetWriter(self._part, self._schema, compression="zstd", use_dictionary=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        _settle(self._part, self._path, kept=kind is None)

    def add(self, rows: Sequence[EncodedRow]) -> None:
        columns: dict[str, list[Any]] = {
            "input": [row.given for row in rows],
            "embedding": [row.vector for row in rows],
            "error": [row.error or None for row in rows],
            "content_hash": [row.content_hash.hex() or None for row in rows],
        }
        self._writer.write_table(pa.table(columns, schema=self._schema))


@dataclass(slots=True)
class NumpyFile:
    """One matrix (inputs, dim) float32 in the order of the inputs; the rows of those that failed are NaN."""

    path: Path
    spec: EncoderSpec
    _matrices: list[NDArray[np.float32]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        empty = np.zeros((0, self.spec.dim), dtype=np.float32)
        with part.open("wb") as file:
            np.save(file, np.concatenate([empty, *self._matrices]))
        _settle(part, self.path, kept=True)

    def add(self, rows: Sequence[EncodedRow]) -> None:
        missing = np.full(self.spec.dim, np.nan, dtype=np.float32)
        if rows:
            self._matrices.append(np.stack([missing if row.vector is None else row.vector for row in rows]))


def _settle(part: Path, path: Path, *, kept: bool) -> None:
    if kept:
        os.replace(part, path)
    else:
        part.unlink(missing_ok=True)
