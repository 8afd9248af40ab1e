"""Child processes of the demo: EmbArk, KFC and Retina as a user would start them."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_SECONDS = 20.0  # longer than the slowest drain: one batch of KFC


class ProcessDied(Exception):
    """A process ended by itself; the message names its log and the last line in it."""


class ChildProcess:
    """`embark <command>` as a process of its own, its output in a log file; stopped on leaving the context.

    Args:
        name: for messages and the log's name.
        arguments: of the `embark` command.
        environment: the whole environment of the process.
        log: file for its output.
        folder: in which it runs; this process's own otherwise.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-P", "-m", "embark", *arguments]  # -P: not what lies in the working folder
        self._environment = dict(environment)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops this one in order
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id; None where it was never started."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int | None:
        """Asks the process to end, then makes it; its exit status, None where it was never started."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def check(self) -> None:
        """Raises:
        ProcessDied: the process is not running any more.
        """
        if not self.running:
            raise ProcessDied(f"{self.name} ended by itself: {self._last_line()} (log: {self.log})")

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits until `ready()` holds.

        Raises:
            ProcessDied: it ended before, or was not ready after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise ProcessDied(
                    f"{self.name} was not ready after {seconds:.0f} s: {self._last_line()} (log: {self.log})"
                )
            time.sleep(0.1)

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1].strip() if lines else "it printed nothing"
