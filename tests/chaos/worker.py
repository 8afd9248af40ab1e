"""One KFC, a process of its own: all of it is real but Retina, and it dies where it is told to."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feast import FeatureStore

from encoders.client import Encoded, Outcome, content_hash, memory_vector
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.failures import MARK_SECONDS, CassandraFailureMarks
from feature_repo.online_rows import FeastOnlineRows
from feature_repo.session import connect
from feature_repo.views import encoder_specs
from materializer.archive import EmbeddedBatch, FeastArchive
from materializer.process import open_consumer, open_producer, topics_of
from materializer.worker import Limits, Worker
from tests.chaos.requests import SPECS, outcome_of

Point = Literal["history", "commit", "marks"]
POINTS: tuple[Point, ...] = ("history", "commit", "marks")
LIMITS = Limits(max_attempts=1000)  # each process finds a slow key slow once more
SESSION_MS = 6000  # the least that a broker allows: a killed worker's partitions wait for so long


class Fuses:
    """Where the next worker that comes by is to die: a file a point, which only one can remove."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def light(self, point: Point) -> None:
        (self._folder / point).touch()

    def burns(self, point: Point) -> bool:
        return (self._folder / point).exists()

    def pass_by(self, point: Point) -> None:
        """Dies of SIGKILL where the point's fuse burns."""
        try:
            (self._folder / point).unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


class MortalArchive(FeastArchive):
    """Dies between history and online store, or between that and the commit."""

    def __init__(self, store: FeatureStore, fuses: Fuses, beats: Any, slot: int) -> None:
        super().__init__(store, FeastOnlineRows(store))
        self._fuses = fuses
        self._beats = beats
        self._slot = slot

    def append_history(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        super().append_history(spec, batch)
        self._fuses.pass_by("history")

    def write_online(self, spec: EncoderSpec, batch: EmbeddedBatch) -> None:
        super().write_online(spec, batch)
        self._fuses.pass_by("commit")
        self._beats[self._slot] += 1


class MortalMarks(CassandraFailureMarks):
    """Dies when the broker has the dead letters, before look-ups are told."""

    def __init__(self, store: FeatureStore, fuses: Fuses) -> None:
        super().__init__(connect(store), store.config.online_store.keyspace, store.project)
        self._fuses = fuses

    def mark(self, view: str, failures: Mapping[str, str], seconds: int = MARK_SECONDS) -> None:
        self._fuses.pass_by("marks")
        super().mark(view, failures, seconds)


class QuickRetina:
    """A Retina whose embeddings are drawn from the keys' hashes; `outcome_of` says which keys have none."""

    def __init__(self) -> None:
        self._tried: dict[str, int] = {}

    def encode(self, view: str, fingerprint: str, keys: Sequence[str], timeout: float) -> Encoded:
        outcomes = tuple(map(self._outcome, keys))
        embedded = [key for key, outcome in zip(keys, outcomes, strict=True) if not outcome.reason]
        dim = SPECS[view].dim
        vectors = np.array([memory_vector(key, dim) for key in embedded], dtype=np.float32)
        return Encoded(vectors=vectors.reshape(len(embedded), dim), outcomes=outcomes, fingerprint=fingerprint)

    def _outcome(self, key: str) -> Outcome:
        tried = self._tried.get(key, 0)
        self._tried[key] = tried + 1
        return outcome_of(key, tried) or Outcome(content_hash=content_hash(key.encode()))


def work(repo: Path, fuses: Path, beats: Any, ready: Any, slot: int, log: Path) -> None:
    """Works until SIGTERM: what the process does."""
    with log.open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(levelname)s %(name)s %(message)s")
    for name, level in (("kafka", logging.ERROR), ("feast", logging.WARNING)):
        logging.getLogger(name).setLevel(level)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    store, registry = FeatureStore(repo_path=str(repo)), FeatureStore(repo_path=str(repo))
    servers, topics = topics_of(store)
    with (
        closing(open_producer(servers)) as producer,
        EncoderDirectory(lambda: encoder_specs(registry, allow_cache=False)) as directory,
    ):
        worker = Worker(
            consumer=open_consumer(servers, topics, session_timeout_ms=SESSION_MS),
            producer=producer,
            retina=QuickRetina(),
            archive=MortalArchive(store, Fuses(fuses), beats, slot),
            marks=MortalMarks(store, Fuses(fuses)),
            directory=directory,
            topics=topics,
            limits=LIMITS,
            delay=lambda attempt: 1.0,
        )
        ready[slot] = os.getpid()
        worker.run(stop)
    logging.info("drained")


class Crew:
    """Workers that are killed and started again.

    Args:
        repo: applied feature repo.
        folder: for logs and fuses.
    """

    def __init__(self, repo: Path, folder: Path, size: int) -> None:
        # From a server that has imported everything once: a new worker is there at once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._repo = repo
        self._folder = folder
        self._beats = self._context.RawArray("q", size)  # no lock: its holder may be killed
        self._ready = self._context.RawArray("q", size)
        self.fuses = Fuses(folder)
        self.killed = 0
        self._workers = [self._start(slot) for slot in range(size)]

    def _start(self, slot: int) -> Any:
        log = self._folder / f"worker-{slot}.txt"
        arguments = (self._repo, self._folder, self._beats, self._ready, slot, log)
        process = self._context.Process(target=work, args=arguments, daemon=True)
        process.start()
        return process

    @property
    def writes(self) -> int:
        """How often any of them has written online."""
        return sum(self._beats)

    @property
    def at_work(self) -> bool:
        """Whether each of them has come as far as its loop."""
        return all(self._ready[slot] == process.pid for slot, process in enumerate(self._workers))

    @property
    def all_live(self) -> bool:
        return all(process.is_alive() for process in self._workers)

    def kill(self, slot: int) -> None:
        """kill -9."""
        os.kill(self._workers[slot].pid, signal.SIGKILL)

    def revive(self) -> None:
        """Starts those again that were killed; none may have ended in another way."""
        for slot, process in enumerate(self._workers):
            if not process.is_alive():
                process.join()
                assert process.exitcode == -signal.SIGKILL, f"exit status {process.exitcode}: {self.log(slot)}"
                self.killed += 1
                self._workers[slot] = self._start(slot)

    def drain(self, seconds: float) -> list[int | None]:
        """SIGTERM to all of them; their exit status."""
        for process in self._workers:
            process.terminate()
        for process in self._workers:
            process.join(seconds)
        return [process.exitcode for process in self._workers]

    def log(self, slot: int) -> str:
        """The last lines of a worker's log."""
        return "\n".join((self._folder / f"worker-{slot}.txt").read_text(errors="replace").splitlines()[-30:])

    def end(self) -> None:
        for process in self._workers:
            process.kill()
            process.join()
