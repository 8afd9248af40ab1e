"""How much memory something takes."""

import threading

import psutil


class Peak:
    """The most memory that the process held meanwhile, in MiB above what it held before; without pages of files that
    are mapped, which the system takes back when it needs them."""

    def __enter__(self) -> "Peak":
        self._process, self._stop = psutil.Process(), threading.Event()
        self._before = self.most = self._held()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.most = max(self.most, self._held())

    def _held(self) -> int:
        told = self._process.memory_info()
        return int(told.rss - told.shared)

    @property
    def mib(self) -> int:
        return (self.most - self._before) >> 20
