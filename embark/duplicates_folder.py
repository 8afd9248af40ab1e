"""The folder of `embark duplicates`: what was found, and what the next run needs to search only what is new."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from training.duplicate_threshold import Threshold
from training.duplicates import DuplicatesError, Searched

THRESHOLD, CURVE, GROUPS, PAGE = "threshold.json", "threshold.png", "groups.parquet", "groups.html"
STATE = "state.json"
UNCALIBRATED = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Which threshold a run has for a view: given, calibrated, or neither.

    Attributes:
        centre: (dim,) that was calibrated with.
    """

    spec: EncoderSpec
    threshold: float
    calibrated: bool
    centre: NDArray[np.float32] | None

    @classmethod
    def of(cls, path: Path, spec: EncoderSpec, threshold: float | None) -> "Asked":
        """The one that was given, else the one that was calibrated and is kept at `path`, else 0.95.

        Raises:
            DuplicatesError: the one that is kept is of another encoder.
        """
        if threshold is None and path.exists():
            kept = Threshold.read(path, spec)
            centre = np.array(kept.centre, dtype=np.float32)
            return cls(spec=spec, threshold=kept.similarity, calibrated=True, centre=centre)
        return cls(spec=spec, threshold=threshold or UNCALIBRATED, calibrated=False, centre=None)

    def told(self) -> dict[str, Any]:
        """What a run tells of it."""
        return {
            "view": self.spec.view,
            "fingerprint": self.spec.fingerprint,
            "pretrained": self.spec.pretrained,
            "threshold": self.threshold,
            "calibrated": self.calibrated,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Sought:
    """A view as it was searched: what its pairs depend on. `centre` is (dim,)."""

    view: str
    fingerprint: str
    threshold: float
    centre: Sequence[float]

    def fits(self, asked: Asked) -> bool:
        """Whether its pairs are those of a run with that threshold, and that centre where one was calibrated with."""
        same_centre = asked.centre is None or np.array_equal(np.array(self.centre, dtype=np.float32), asked.centre)
        return self.threshold == asked.threshold and same_centre


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """An earlier run: the views, and what it searched."""

    views: Sequence[Sought]
    searched: Searched

    def fits(self, asked: Sequence[Asked]) -> bool:
        """Whether it may be gone on with; pairs between two thresholds were not kept."""
        return all(view.fits(each) for view, each in zip(self.views, asked, strict=True))


def read_before(folder: Path, specs: Sequence[EncoderSpec]) -> Before | None:
    """The last whole run in the folder; None where there was none.

    Raises:
        DuplicatesError: it was of other encoders.
    """
    try:
        state = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        return None
    views = [Sought(**each) for each in state["views"]]
    if [(each.view, each.fingerprint) for each in views] != [(spec.view, spec.fingerprint) for spec in specs]:
        there = " and ".join(f"{each.view} with fingerprint {each.fingerprint}" for each in views)
        asked = " and ".join(f"{spec.view} with fingerprint {spec.fingerprint}" for spec in specs)
        raise DuplicatesError(f"{folder} holds duplicates of {there}, not of {asked}: give another --out, or --anew")
    pairs = pq.read_table(folder / state["pairs"])
    return Before(
        views=views,
        searched=Searched(
            ids=pq.read_table(folder / state["seen"])["embedding_id"].to_numpy(),
            left=pairs["left"].to_numpy(),
            right=pairs["right"].to_numpy(),
            similarity=pairs["similarity"].to_numpy(),
        ),
    )


def write_after(folder: Path, views: Sequence[Sought], searched: Searched, groups: pa.Table) -> None:
    """Writes groups and state. A run that is killed meanwhile leaves the state of before."""
    folder.mkdir(parents=True, exist_ok=True)
    run = 1 + max((int(p.suffixes[0][1:]) for p in folder.glob("seen.*.parquet")), default=0)
    seen, pairs = f"seen.{run}.parquet", f"pairs.{run}.parquet"
    pq.write_table(pa.table({"embedding_id": searched.ids}), folder / seen)
    pq.write_table(
        pa.table({"left": searched.left, "right": searched.right, "similarity": searched.similarity}), folder / pairs
    )
    described = {
        f"embark.{name}".encode(): " ".join(str(getattr(view, name)) for view in views).encode()
        for name in ("view", "fingerprint", "threshold")
    }
    pq.write_table(groups.replace_schema_metadata(described), folder / "groups.new")
    (folder / "groups.new").replace(folder / GROUPS)
    state = {"views": [asdict(view) for view in views], "seen": seen, "pairs": pairs}
    (folder / "state.new").write_text(json.dumps(state))
    (folder / "state.new").replace(folder / STATE)
    for old in [*folder.glob("seen.*.parquet"), *folder.glob("pairs.*.parquet")]:
        if old.name not in (seen, pairs):
            old.unlink(missing_ok=True)
