"""This machine's rates, measured in a minute: its encoders, its Cassandra, one KFC and one EmbArk.

In a project of its own on the servers that the feature repo names: its tables and topics are removed at the end. One
process asks, so each rate is a floor. What is measured is what the benchmarks measure, more roughly.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from embark.child_process import ProcessDied
from embark.encoders import measured
from embark.local_encoders import registered
from embark.planning.part_rates import archived, looked_up
from embark.planning.scratch import DIMS, scratch
from embark.planning.store_rates import reads, writes
from embark.planning.workload import EncoderLoad
from embark.repo import check_repo
from embark.settings import Settings
from feature_repo.session import StoreUnavailable
from feature_repo.views import NothingApplied
from materializer.archive import ArchiveUnavailable
from materializer.process import KafkaUnavailable


@dataclass(slots=True)
class Calibration:
    """What was measured.

    Attributes:
        rates: by their names in `Rates`.
        encoders: what one Retina makes of each that is registered, downloads not counted.
        missing: what could not be measured, and why.
    """

    rates: dict[str, float] = field(default_factory=dict)
    encoders: list[EncoderLoad] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def calibrate(settings: Settings, progress: Callable[[str], None]) -> Calibration:
    """Measures what can be measured with the servers that answer; told what it is about to do.

    Raises:
        RepoError: there is no feature repo.
    """
    check_repo(settings.repo)
    done = Calibration()
    for spec in registered(settings).values():
        progress(f"the encoder {spec.view}")
        speed = measured(settings, spec)
        if isinstance(speed, float):
            done.encoders.append(EncoderLoad(name=spec.view, dim=spec.dim, per_second=speed))
        else:
            done.missing.append(f"{spec.view}: {speed}")
    progress("reaching the servers")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        try:
            bench = stack.enter_context(scratch(settings, Path(folder)))
        except (NothingApplied, StoreUnavailable) as error:
            done.missing.append(f"store, kfc and embark rates: {error}")
            return done
        try:
            progress("writes to Cassandra")
            done.rates["store_writes"], keys = writes(bench)
            progress("reads from Cassandra")
            done.rates["store_read_us"], done.rates["store_read_us_a_float"] = reads(bench, keys)
        except (ArchiveUnavailable, StoreUnavailable) as error:
            done.missing.append(f"other rates: {error}")
            return done
        progress("KFC")
        try:
            done.rates["kfc"] = archived(bench)
        except KafkaUnavailable as error:
            done.missing.append(f"kfc and embark rates: {error}")
            return done  # EmbArk needs Kafka, too
        except ProcessDied as error:
            done.missing.append(f"kfc: {error}")
        progress("EmbArk")
        try:
            done.rates["embark_cold"], done.rates["embark_hot"] = looked_up(
                settings, bench, keys[DIMS[-1]], Path(folder)
            )
        except ProcessDied as error:
            done.missing.append(f"embark rates: {error}")
    return done
