"""The folder of `embark duplicates`: what was found, and what the next run needs to search only what is new."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from training.duplicates import DuplicatesError, Searched

THRESHOLD, GROUPS, PAGE = "threshold.json", "groups.parquet", "groups.html"
STATE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """An earlier run: its threshold and centre (dim,), and what it searched."""

    threshold: float
    centre: NDArray[np.float32]
    searched: Searched

    def fits(self, threshold: float, centre: NDArray[np.float32] | None) -> bool:
        """Whether its pairs are those of a run with that threshold, and that centre where one was calibrated with."""
        return self.threshold == threshold and (centre is None or np.array_equal(self.centre, centre))


def read_before(folder: Path, spec: EncoderSpec) -> Before | None:
    """The last whole run in the folder; None where there was none.

    Raises:
        DuplicatesError: it was of another encoder.
    """
    try:
        state = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        return None
    if (state["view"], state["fingerprint"]) != (spec.view, spec.fingerprint):
        raise DuplicatesError(
            f"{folder} holds duplicates of {state['view']} with fingerprint {state['fingerprint']}, {spec.view} has"
            f" {spec.fingerprint}: give another --out, or --anew"
        )
    pairs = pq.read_table(folder / state["pairs"])
    return Before(
        threshold=state["threshold"],
        centre=np.array(state["centre"], dtype=np.float32),
        searched=Searched(
            ids=pq.read_table(folder / state["seen"])["embedding_id"].to_numpy(),
            left=pairs["left"].to_numpy(),
            right=pairs["right"].to_numpy(),
            similarity=pairs["similarity"].to_numpy(),
        ),
    )


def write_after(
    folder: Path, spec: EncoderSpec, threshold: float, centre: NDArray[np.float32], searched: Searched, groups: pa.Table
) -> None:
    """Writes groups and state. A run that is killed meanwhile leaves the state of before."""
    folder.mkdir(parents=True, exist_ok=True)
    run = 1 + max((int(p.suffixes[0][1:]) for p in folder.glob("seen.*.parquet")), default=0)
    seen, pairs = f"seen.{run}.parquet", f"pairs.{run}.parquet"
    pq.write_table(pa.table({"embedding_id": searched.ids}), folder / seen)
    pq.write_table(
        pa.table({"left": searched.left, "right": searched.right, "similarity": searched.similarity}), folder / pairs
    )
    described = groups.replace_schema_metadata(
        {
            b"embark.view": spec.view.encode(),
            b"embark.fingerprint": spec.fingerprint.encode(),
            b"embark.threshold": str(threshold).encode(),
        }
    )
    pq.write_table(described, folder / "groups.new")
    (folder / "groups.new").replace(folder / GROUPS)
    state = {
        "view": spec.view,
        "fingerprint": spec.fingerprint,
        "threshold": threshold,
        "centre": centre.tolist(),
        "seen": seen,
        "pairs": pairs,
    }
    (folder / "state.new").write_text(json.dumps(state))
    (folder / "state.new").replace(folder / STATE)
    for old in [*folder.glob("seen.*.parquet"), *folder.glob("pairs.*.parquet")]:
        if old.name not in (seen, pairs):
            old.unlink(missing_ok=True)
