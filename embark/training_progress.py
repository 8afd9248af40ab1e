"""How training shows itself: a bar over the batches of an epoch, a line an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from training.train import Epoch

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("{task.fields[note]}"),
    TimeElapsedColumn(),
)


class ProgressBars:
    """Bars on a console; where nobody looks, lines alone."""

    def __init__(self, console: Console, progress: Progress, quiet: bool) -> None:
        self._console = console
        self._progress = progress
        self._quiet = quiet
        self._tasks: dict[str, TaskID] = {}

    def pictures(self, done: int, of: int) -> None:
        self._show("decoding pictures", done, of)

    def batch(self, epoch: int, done: int, of: int, loss: float) -> None:
        self._show("training", done, of, f"epoch {epoch}, loss {loss:.4f}")

    def epoch(self, epoch: Epoch, best: bool) -> None:
        if self._quiet:
            return
        auc = "" if epoch.valid_auc is None else f", AUC {epoch.valid_auc:.4f}"
        self._console.print(
            f"epoch {epoch.epoch:>3}: trained to {epoch.train_nll:.4f}, validated {epoch.valid_nll:.4f}"
            f" (log-loss {epoch.valid_log_loss:.4f}{auc}), {epoch.seconds:.1f} s{', the best yet' if best else ''}"
        )

    def _show(self, what: str, done: int, of: int, note: str = "") -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=of, note=note)
        self._progress.update(self._tasks[what], completed=done, total=of, note=note)


@contextmanager
def progress_bars(console: Console, *, quiet: bool = False) -> Iterator[ProgressBars]:
    """Bars that are gone when the context is left.

    Args:
        console: where they are shown.
        quiet: neither bars nor lines.
    """
    with Progress(*COLUMNS, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield ProgressBars(console, progress, quiet)
