"""Commits of what is durable, in order and beside the work on what comes next."""

from collections.abc import Iterable
from functools import partial

from materializer.abandonment import Abandonment
from materializer.batch import Batch
from materializer.group import Commit, GroupMember
from materializer.outage import Abandoned, Patience


class Commits:
    """Commits finished batches. Used by the group member's thread.

    One commit is on its way at a time, while this thread takes the next batches: what is finished meanwhile is
    committed together. One that fails is tried again until it is done, and nothing is taken until then.

    Args:
        abandonment: which batches are not finished: they are not committed.
    """

    def __init__(self, group: GroupMember, abandonment: Abandonment) -> None:
        self._group = group
        self._abandonment = abandonment
        self._finished: list[Batch] = []  # in their order
        self._under_way: tuple[list[Batch], Commit] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a batch is neither committed nor abandoned."""
        return bool(self._finished or self._under_way)

    def go_on(self, finished: Iterable[Batch], patience: Patience) -> list[Batch]:
        """Has the next commit begin where the last one has ended; answers what is committed or abandoned since.

        Args:
            finished: batches that went through all stages since the last call, in order.
        """
        self._finished += finished
        ended: list[Batch] = []
        if self._under_way is not None:
            batches, commit = self._under_way
            if not commit.done:
                return []
            self._under_way = None
            if commit.error is not None:
                for batch in batches:
                    self._wait_for(batch, patience)
            ended += batches
        batches, self._finished = self._finished, []
        durable = [batch for batch in batches if not self._abandonment.reaches(batch)]
        if durable:
            self._under_way = durable, self._group.begin_commit(batch.taken for batch in durable)
        return ended + [batch for batch in batches if batch.abandoned]

    def _wait_for(self, batch: Batch, patience: Patience) -> None:
        if not self._abandonment.reaches(batch):
            try:
                patience.until_done(partial(self._group.commit, batch.taken), batch.taken)
            except Abandoned as why:
                self._abandonment.begin(batch, str(why))
