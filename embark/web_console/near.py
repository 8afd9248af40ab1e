"""What is near an item, searched where that is cheap and kept for a while."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from embark.web_console.archive import KeyState, Neighbour
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status
from feature_repo.session import StoreUnavailable

COUNT = 6
KEPT_SECONDS = 60.0
MOST_KEPT = 1000
CHEAP_ITEMS = 5_000  # of a view without an index: each search reads them all, some 20 MB, in a fraction of a second


class Searches(Protocol):
    """What is searched: `embark.web_console.archive.ArchiveReader`."""

    def near(self, spec: EncoderSpec, key: str, count: int) -> list[Neighbour]: ...

    def has_index(self, spec: EncoderSpec) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """What is near an item in one view.

    Attributes:
        found: nearest first.
        searched: whether it was; `why_not` says what came between.
    """

    view: str
    found: Sequence[Neighbour] = ()
    searched: bool = True
    why_not: str = ""


class Nearby:
    """Safe to share between threads.

    Args:
        archive: what is searched.
        items: view → how many items it has; None where that is not known.
        clock: seconds, of any origin.
    """

    def __init__(
        self, archive: Searches, items: Callable[[str], int | None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._archive = archive
        self._items = items
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], tuple[float, Near]] = OrderedDict()

    def cheap(self, spec: EncoderSpec) -> bool:
        """Whether a search of a view costs little."""
        items = self._items(spec.view)
        return (items is not None and items <= CHEAP_ITEMS) or self._archive.has_index(spec)

    def of(self, spec: EncoderSpec, state: KeyState, *, anyway: bool = False) -> Near | None:
        """What is near an item; None of one that has no embedding.

        Args:
            anyway: search, though that is not cheap.
        """
        if state.status != Status.HIT.name:
            return None
        name = (spec.view, state.embedding_id)
        with self._lock:
            kept = self._kept.get(name)
        if kept is not None and self._clock() - kept[0] <= KEPT_SECONDS:
            return kept[1]
        if not (anyway or self.cheap(spec)):
            return Near(view=spec.view, searched=False, why_not="a search of this view reads every row of it")
        try:
            near = Near(view=spec.view, found=self._archive.near(spec, state.key, COUNT))
        except (LookupError, ValueError, StoreUnavailable) as error:
            near = Near(view=spec.view, searched=False, why_not=str(error))
        with self._lock:
            self._kept[name] = self._clock(), near
            self._kept.move_to_end(name)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return near
