"""A server as a child process that outlives the command that started it, and that only its starter may end."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

STOP_SECONDS = 30.0  # Cassandra flushes before it ends
SAME_MOMENT = 0.005  # s; the kernel counts in steps of 0.01 s


class ServersError(Exception):
    """A server cannot be started; one line that names the port, the log or what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerProcess:
    """One server: its process id lies in `folder`, with the time at which that process was created.

    A process id alone may have come to belong to somebody else's process since. The time is kept twice, by the clock
    and since the machine started: when the clock is set, the one moves on Linux and the other on macOS.
    """

    name: str
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pid.json"

    def process(self) -> psutil.Process | None:
        """The running process that was started here, if any."""
        try:
            noted = json.loads(self._pid_file.read_text())
            process = psutil.Process(noted["pid"])
            now = created(process)
            same = any(abs(now[by] - noted[by]) < SAME_MOMENT for by in now)
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (FileNotFoundError, ValueError, KeyError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    def start(self, command: list[str]) -> None:
        """Starts `command` in a session of its own, its output in the log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            child = subprocess.Popen(  # noqa: S603 - our own command line
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        noted = {"pid": child.pid} | created(psutil.Process(child.pid))
        temporary = self._pid_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(noted))
        os.replace(temporary, self._pid_file)
        child.returncode = 0  # it is not waited for: it outlives this process, and no warning is due

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits for a started server to answer.

        Raises:
            ServersError: it died, or does not answer after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process() is None:
                raise ServersError(f"{self.name} died at start: {self.last_words()} (log: {self.log})")
            if time.monotonic() > deadline:
                raise ServersError(f"{self.name} does not answer after {seconds:.0f} s (log: {self.log})")
            time.sleep(0.1)

    def stop(self) -> bool:
        """Ends the process that was started here, kindly at first; False where none ran."""
        process = self.process()
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)
        self._pid_file.unlink(missing_ok=True)
        return process is not None

    def last_words(self) -> str:
        """The last line of the log that tells of an error, or the last one."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if not line.startswith("at ") and ("ERROR" in line or "Exception" in line)]
        return (telling or lines or ["it printed nothing"])[-1][:300]


def created(process: psutil.Process) -> dict[str, float]:
    """When a process was created: `by_clock`, seconds since 1970, and `since_boot`, seconds."""
    by_clock = process.create_time()
    return {"by_clock": by_clock, "since_boot": by_clock - psutil.boot_time()}
