"""What goes away by itself, and waiting for it: a batch is finished late rather than lost."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from kafka.errors import CommitFailedError, KafkaError, RebalanceInProgressError

from encoders.client import RetinaAway, RetinaBusy
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.session import StoreUnavailable
from materializer.archive import ArchiveUnavailable
from materializer.group import GroupMember, Taken
from materializer.metrics import Cause, WorkerMetrics

logger = logging.getLogger(__name__)

MAX_STALL_SECONDS = 10.0  # between two tries: how late the return of what was down is noticed
REBALANCE_SECONDS = 0.1  # a commit waits for the rebalance that the polls in between complete
QUIET_TRIES = 3  # then it is no hiccup any more, and an operator should see it

OUTAGES = (
    ArchiveUnavailable,
    RetinaAway,
    RetinaBusy,
    KafkaError,
    StoreUnavailable,  # of the failure marks
    OSError,
)

T = TypeVar("T")


class Abandoned(Exception):
    """The batch at hand is not finished: nothing of it is committed, and whoever owns its partitions reads it again."""


class Patience:
    """Repeats what an outage is in the way of.

    Args:
        group: asked whether a batch is still this member's.
        directory: an encoder that changes there while a batch waits ends the waiting.
        metrics: told what is waited for.
        wait: lets seconds pass; ends early when `stop` is set.
        stop: ends the waiting too.
    """

    def __init__(
        self,
        group: GroupMember,
        directory: EncoderDirectory,
        metrics: WorkerMetrics,
        wait: Callable[[float], object],
        stop: threading.Event,
    ) -> None:
        self._group = group
        self._directory = directory
        self._metrics = metrics
        self._wait = wait
        self._stop = stop

    def until_done(self, action: Callable[[], T], taken: Taken, spec: EncoderSpec | None = None) -> T:
        """Repeats an idempotent action for a batch, and the encoder `spec` if any, until no outage is in its way.

        Raises:
            Abandoned: it was not done when all partitions of the batch had gone to other workers, when the encoder had
                changed in the registry, or when the worker was told to stop.
        """
        tries = 0
        with self._metrics.stall() as stall:
            while True:
                try:
                    done = action()
                except (RebalanceInProgressError, CommitFailedError) as error:
                    seconds = REBALANCE_SECONDS
                    logger.debug("a rebalance is under way: %s", error)
                except OUTAGES as error:
                    tries += 1
                    seconds = min(MAX_STALL_SECONDS, 0.25 * 2 ** min(tries, 10))
                    if isinstance(error, RetinaBusy) and error.retry_after:
                        seconds = min(MAX_STALL_SECONDS, error.retry_after)  # it knows how long its queue is
                    stall.on(cause_of(error))
                    level = logging.WARNING if tries <= QUIET_TRIES else logging.ERROR
                    logger.log(
                        level,
                        "%s: %d requests wait %.1f s, then try %d: %r",
                        stall.cause,
                        len(taken),
                        seconds,
                        tries + 1,
                        error,
                    )
                else:
                    if stall.cause:
                        logger.warning(
                            "%s: at try %d the outage is over, %d requests go on", stall.cause, tries + 1, len(taken)
                        )
                    return done
                self._wait(seconds)
                if not self._group.still_has(taken):
                    raise Abandoned("its partitions went to other workers")
                if spec is not None and self._directory.specs.get(spec.view) != spec:
                    raise Abandoned(f"{spec.view} has changed in the registry")
                if self._stop.is_set():
                    raise Abandoned("told to stop during an outage")


def cause_of(error: BaseException) -> Cause:
    """What is away, by the error that it makes."""
    if isinstance(error, ArchiveUnavailable):
        return error.part
    if isinstance(error, RetinaBusy):
        return "busy_retina"
    if isinstance(error, RetinaAway):
        return "retina"
    if isinstance(error, KafkaError):
        return "kafka"
    return "online_store" if isinstance(error, StoreUnavailable) else "system"
