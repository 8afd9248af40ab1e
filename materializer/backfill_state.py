"""How far a backfill of a file has come: a small file, so that an interrupted one goes on where it stood."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

HEAD_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is being sent where: another one begins at its first row.

    Attributes:
        path: of the input, absolute.
        size: of the input in bytes.
        modified: when it was last written, nanoseconds since 1970.
        head: hash of its first 64 KiB.
        key_column, time_column: what is read of it.
        view: feature view of the encoder.
        servers, topic: where it goes.
    """

    path: str
    size: int
    modified: int
    head: str
    key_column: str
    time_column: str | None
    view: str
    servers: str
    topic: str

    @classmethod
    def of(cls, path: Path, *, key_column: str, time_column: str | None, view: str, servers: str, topic: str) -> "Job":
        """The job as the file is now.

        Raises:
            OSError: it cannot be read.
        """
        path = path.resolve()
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            head = hashlib.blake2b(file.read(HEAD_BYTES), digest_size=16).hexdigest()
        return cls(
            path=str(path),
            size=found.st_size,
            modified=found.st_mtime_ns,
            head=head,
            key_column=key_column,
            time_column=time_column,
            view=view,
            servers=servers,
            topic=topic,
        )


class StateFile:
    """Rows of a job that Kafka has acknowledged, in one file a path and view.

    Args:
        folder: where such files lie; made with the first `save`.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        named = hashlib.blake2b(f"{job.topic}\0{job.view}\0{job.path}".encode(errors="surrogateescape"), digest_size=12)
        self.path = folder / f"{named.hexdigest()}.json"
        self._job = job

    def load(self) -> int | None:
        """Rows done before; None where none were, or what is known is of a job that differs in anything."""
        try:
            saved = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(saved, dict) or saved.get("job") != asdict(self._job):
            return None
        rows = saved.get("rows")
        return rows if type(rows) is int and rows > 0 else None

    def save(self, rows: int) -> None:
        """Remembers that all up to this row is done: whole and durable, or not at all.

        Raises:
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        with beside.open("w") as file:
            json.dump({"job": asdict(self._job), "rows": rows}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def forget(self) -> None:
        """The job is done: next time it begins at its first row.

        Raises:
            OSError: it cannot be removed.
        """
        self.path.unlink(missing_ok=True)
