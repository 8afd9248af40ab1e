"""The file of rates: what `embark plan --calibrate` writes and `embark plan --rates` reads."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embark.planning.workload import EncoderLoad, PlanError, Rates

ENCODERS = "encoders"


@dataclass(frozen=True, kw_only=True, slots=True)
class RatesFile:
    """What a file says.

    Attributes:
        rates: by their names in `Rates`; those that it leaves out are the measured ones of this project.
        encoders: what one Retina makes of each, where the file says so.
    """

    rates: Mapping[str, float]
    encoders: Sequence[EncoderLoad] = ()

    @property
    def all_rates(self) -> Rates:
        """Raises:
        PlanError: one is not above 0.
        """
        given: dict[str, Any] = dict(self.rates)
        return Rates(**given)


def read_rates(path: Path) -> RatesFile:
    """Raises:
    PlanError: it cannot be read, or names what is no rate.
    """
    try:
        given = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from error
    encoders = given.pop(ENCODERS, {})
    unknown = sorted(set(given) - set(Rates.__slots__))
    if unknown or not all(type(value) in (int, float) for value in given.values()):
        raise PlanError(
            f"{path}: {', '.join(unknown) or 'a value'} is no rate; they are numbers named {', '.join(Rates.__slots__)}"
        )
    file = RatesFile(rates=given, encoders=[_encoder(path, *each) for each in dict(encoders).items()])
    _ = file.all_rates  # checks them
    return file


def _encoder(path: Path, name: str, told: Any) -> EncoderLoad:
    try:
        load = EncoderLoad(name=name, dim=told["dim"], per_second=told["per_second"])
        good = load.dim > 0 and 0 < load.per_second < float("inf")
    except (KeyError, TypeError):
        good = False
    if not good:
        raise PlanError(f"{path}: encoder {name} needs dim and per_second, numbers above 0")
    return load


def write_rates(path: Path, file: RatesFile, comments: Sequence[str]) -> None:
    """Writes them, with a line of comment each at the top. A reader sees the old file or the new one."""
    lines = [f"# {comment}" for comment in comments]
    lines += [f"{name} = {value!r}" for name, value in file.rates.items()]
    for each in file.encoders:
        lines += ["", f"[{ENCODERS}.{json.dumps(each.name)}]", f"dim = {each.dim}", f"per_second = {each.per_second!r}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f"{path.suffix}.new")
    beside.write_text("\n".join(lines) + "\n")
    beside.replace(path)
