"""Registered encoders: what they are, where they run, how many items each has, and its coverage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow.dataset as ds
from feast import FeatureStore

from embark.encoders import Running, ask_retina
from encoders.spec import EncoderSpec
from feature_repo.offline.newest import KEY, HistoryUnreadable, write_newest
from feature_repo.offline.parts import current, folder_of

COUNTED_ROWS = 5_000_000  # of history, in all views of a modality: some seconds of DuckDB, and 512 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderState:
    """One registered encoder.

    Attributes:
        running: as the Retina that answers has it; None where none does, or it does not know the view.
        items: keys that have an embedding; None where history was not counted.
        known: keys that any encoder of the modality has.
        uncounted: why there are no figures; empty where there are.
    """

    spec: EncoderSpec
    running: Running | None
    items: int | None
    known: int | None
    uncounted: str

    @property
    def coverage(self) -> float | None:
        """The share of the known keys that have an embedding in this view, 0 to 1; None where there are none."""
        return self.items / self.known if self.items is not None and self.known else None

    def to_json(self) -> dict[str, Any]:
        return {
            "view": self.spec.view,
            "modality": self.spec.modality,
            "dim": self.spec.dim,
            "network": self.spec.network,
            "weights": self.spec.pinned,
            "pretrained": self.spec.pretrained,
            "fingerprint": self.spec.fingerprint,
            "retina": (
                {"loaded": self.running.loaded, "device": self.running.device, "same": self.running.same}
                if self.running
                else None
            ),
            "items": self.items,
            "known": self.known,
            "coverage": self.coverage,
            "uncounted": self.uncounted,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """Keys in the histories of the views of a modality: of each, and of all together; or why they were not counted."""

    items: Mapping[str, int]
    known: int
    why_not: str = ""


class EncoderReader:
    """Reads all of it; history is only counted again when a file of it has changed. For one thread.

    Args:
        store: a feature store of its own.
        retina: address.
    """

    def __init__(self, store: FeatureStore, retina: str) -> None:
        self._store = store
        self._retina = retina
        self._counted: dict[str, tuple[object, Counted]] = {}  # by modality, with the files that it was counted from

    def read(self, specs: Mapping[str, EncoderSpec]) -> list[EncoderState]:
        """Every registered encoder, in order of its view's name."""
        running, _ = ask_retina(self._retina, list(specs.values()))
        modalities = {spec.modality for spec in specs.values()}
        counted = {each: self._count([s for s in specs.values() if s.modality == each]) for each in modalities}
        return [
            EncoderState(
                spec=spec,
                running=running.get(view),
                items=counted[spec.modality].items.get(view),
                known=None if counted[spec.modality].why_not else counted[spec.modality].known,
                uncounted=counted[spec.modality].why_not,
            )
            for view, spec in specs.items()
        ]

    def _count(self, specs: Sequence[EncoderSpec]) -> Counted:
        folders = {spec.view: folder_of(self._store.get_feature_view(spec.view).batch_source) for spec in specs}
        if missing := sorted(view for view, folder in folders.items() if folder is None):
            return Counted(items={}, known=0, why_not=f"the history of {missing[0]} is not kept in parts")
        files = {view: tuple(current(folder, folder.names())) for view, folder in folders.items() if folder}
        before, counted = self._counted.get(specs[0].modality, (None, None))
        if counted is None or before != files:
            counted = self._counted_anew(specs, folders, files)
            self._counted[specs[0].modality] = (files, counted)
        return counted

    def _counted_anew(
        self, specs: Sequence[EncoderSpec], folders: Mapping[str, Any], files: Mapping[str, tuple[str, ...]]
    ) -> Counted:
        rows = sum(_rows(folders[view], names) for view, names in files.items())
        if rows > COUNTED_ROWS:
            return Counted(items={}, known=0, why_not=f"history has {rows:,} rows, too many to count here")
        with TemporaryDirectory(prefix="embark-console-") as place, duckdb.connect() as connection:
            paths = {spec.view: str(Path(place) / f"{spec.view}.parquet") for spec in specs}
            try:
                for spec in specs:
                    write_newest(self._store, spec, Path(paths[spec.view]))
            except HistoryUnreadable as error:
                return Counted(items={}, known=0, why_not=str(error))
            items = {
                view: int(connection.execute("SELECT count(*) FROM read_parquet(?)", [path]).fetchall()[0][0])
                for view, path in paths.items()
            }
            everywhere = f"SELECT count(DISTINCT {KEY}) FROM read_parquet(?)"  # noqa: S608
            known = int(connection.execute(everywhere, [list(paths.values())]).fetchall()[0][0])
        return Counted(items=items, known=known)


def _rows(folder: Any, names: Sequence[str]) -> int:
    """Rows of the parts, by their footers."""
    made = ds.ParquetFileFormat()
    return sum(made.make_fragment(folder.file(name), folder.filesystem).count_rows() for name in names)
