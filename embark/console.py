"""What all commands share: where they print and log, and how they tell of what a user can mend."""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from embark.settings import Settings

WIDE = 240  # characters: what is read by a program, or kept in a file, is not folded
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else WIDE)

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

# What a user can mend, by module: one that was not imported cannot have raised.
EXPECTED_ERRORS = {
    "embark.child_process": "ProcessDied",
    "embark.photographs": "PortTaken",
    "embark.planning.workload": "PlanError",
    "embark.repo": "RepoError",
    "embark.servers": "ServersError",
    "encoders.compute": "DeviceUnavailable",
    "encoders.downloads": "WeightsUnavailable",
    "encoders.spec": "SpecError",
    "feature_repo.directory": "UnknownView",
    "feature_repo.session": "StoreUnavailable",
    "feature_repo.views": "NothingApplied",
    "materializer.backfill": "BackfillStopped",
    "materializer.backfill_input": "InputError",
    "materializer.dead_letter_actions": "RetryStopped",
    "materializer.coverage": "CoverageUnknown",
    "feature_repo.services": "CannotSwitch",
    "materializer.invalidation": "InvalidationStopped",
    "feature_repo.offline.newest": "HistoryUnreadable",
    "materializer.process": "KafkaUnavailable",
    "serving.answers": "ClientError",
    "embark.tracing": "TracingMissing",
    "serving.callers": "CallersInvalid",
    "serving.processes": "ProcessesFailed",
    "serving.transport": "TransportRefused",
    "training.config": "ConfigError",
    "training.duplicates": "DuplicatesError",
    "training.impressions": "ImpressionsError",
    "training.ranker": "RankError",
    "training.saved": "ModelError",
}


def printable(text: str) -> str:
    """A stranger's text on a line of its own: what is not printable is escaped, so that it cannot move the cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_expected(error: Exception) -> bool:
    """Whether one line says enough about an error."""
    return any(
        isinstance(error, getattr(sys.modules[module], name))
        for module, name in EXPECTED_ERRORS.items()
        if module in sys.modules
    )


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Prints expected errors as one line and exits with 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except click.ClickException:
            raise
        except Exception as error:
            if not is_expected(error):
                raise
            err.print(f"[red]error:[/] {escape(str(error))}")
            raise click.exceptions.Exit(1) from None

    return run


class JsonLines(logging.Formatter):
    """A JSON object a line: time in ISO 8601 and UTC, level, logger, message, and the trace where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told)


def start_logging(settings: Settings) -> None:
    """Logs of a server go to standard error, a line an event."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # Feast shows those of every library
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    for chatty in ("cassandra", "kafka", "feast"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
