"""Where the parts of one history lie: a folder on a disk, or a prefix on an object store; flat, and append-only."""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from feature_repo.offline.filesystems import open_filesystem, put

ROW_GROUP_BYTES = 8 << 20  # of values: small enough to skip what a join does not want, large enough to read at speed


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a history folder."""

    name: str
    size: int  # bytes
    modified: float  # seconds since 1970, by the clock of whoever keeps the file


@dataclass(frozen=True, slots=True)
class Folder:
    """One history's folder. Files appear in it whole or not at all, and never change.

    Attributes:
        filesystem: pyarrow's.
        path: in that file system.
        local: on a disk of this machine (or one mounted): a file is renamed into place; elsewhere one put does it.
    """

    filesystem: fs.FileSystem = field(compare=False)  # has no hash
    path: str
    local: bool

    @staticmethod
    def at(path: str, *, s3_endpoint: str | None = None, credentials: Mapping[str, str] | None = None) -> "Folder":
        """The folder at a local path or a URI; see `open_filesystem`."""
        filesystem, inner = open_filesystem(path, s3_endpoint=s3_endpoint, credentials=credentials)
        return Folder(filesystem, inner, isinstance(filesystem, fs.LocalFileSystem))

    def file(self, name: str) -> str:
        """The path of a file in `filesystem`."""
        return f"{self.path}/{name}"

    def names(self) -> list[str]:
        """The parquet files in order of name; none where the folder is not there."""
        if self.local:
            try:
                found = os.listdir(self.path)
            except FileNotFoundError:
                return []
        else:
            found = [each.base_name for each in self._listed()]
        return sorted(name for name in found if name.endswith(".parquet") and not name.startswith((".", "_")))

    def is_flat(self) -> bool:
        """Whether there are no folders in it: what is laid out otherwise is not ours."""
        if not self.local:
            return not any(each.type == fs.FileType.Directory for each in self._listed())
        try:
            with os.scandir(self.path) as entries:
                return not any(entry.is_dir() for entry in entries)
        except FileNotFoundError:
            return True

    def entries(self, suffix: str = ".parquet") -> list[Entry]:
        """The files of that suffix, hidden ones too, in order of name; with what costs a call each."""
        listed = (each for each in self._listed() if each.is_file and each.base_name.endswith(suffix))
        found = [Entry(each.base_name, each.size or 0, (each.mtime_ns or 0) / 1e9) for each in listed]
        return sorted(found, key=lambda entry: entry.name)

    def has(self, name: str) -> bool:
        if self.local:
            return Path(self.file(name)).exists()
        return bool(self.filesystem.get_file_info(self.file(name)).is_file)

    def remove(self, name: str) -> None:
        """Removes a file; it may be gone already."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self.file(name))

    def write(self, name: str, table: pa.Table) -> None:
        """Writes `table` as one file: durable when this returns, and there whole or not at all, whatever crashes when.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        if self.local:
            write_part(Path(self.file(name)), table)
            return
        # One put: an object store shows an object when it is complete, and drops an upload that was cut off.
        buffer = pa.BufferOutputStream()
        _write_parquet(table, buffer)
        put(self.filesystem, self.file(name), buffer.getvalue())

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Holds a lock among the processes of this machine; False where another holds it. No lock elsewhere: True.

        The kernel lets go of it when a process dies.
        """
        if not self.local:
            yield True
            return
        import fcntl  # not on Windows, where nothing but this needs it

        Path(self.path).mkdir(parents=True, exist_ok=True)
        with open(self.file(name), "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _listed(self) -> list[Any]:
        listed: list[Any] = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return listed


def write_part(path: Path, table: pa.Table) -> None:
    """Writes `table` to a local `path` so that it is there whole or not at all, whatever crashes when."""
    _make_folder(path.parent)
    # A leading dot and another suffix: no reader of the folder takes the temporary file for a part.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            _write_parquet(table, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_parquet(table: pa.Table, file: Any) -> None:
    # A dictionary of floats is larger than the floats; split by byte, their exponents compress.
    words, floats = [], []
    for column in table.schema:
        leaf, type_ = column.name, column.type
        while pa.types.is_list(type_):
            leaf, type_ = f"{leaf}.list.element", type_.value_type
        if pa.types.is_floating(type_):
            floats.append(leaf)
        elif pa.types.is_string(type_) or pa.types.is_binary(type_):
            words.append(leaf)
    rows = max(1, ROW_GROUP_BYTES // max(1, table.nbytes // max(1, table.num_rows)))
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=words or False,
        use_byte_stream_split=floats or False,
        row_group_size=rows,
    )


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    # The name of a file is durable only when its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
