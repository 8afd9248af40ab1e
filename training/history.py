"""History for training: for each impression the row of one matrix of distinct embeddings, as one of three readings.

    as_logged       what the look-ups of these impressions answered, by the ids that the ranker logged: exact
    as_served       what the archive held at the time, by event time and created time: as served but for the delay
                    between an embedding's created time and its first answer
    as_of_content   the newest embedding not after the impression, else the oldest one there is, so that an encoder that
                    came later can be read over old traffic; leaks nothing only where content under a key never changes

What is joined, by Feast's `get_historical_features`, is an id of 8 bytes an impression; then each distinct vector is
read once. Memory follows the distinct embeddings and a few bytes an impression, so logs may be larger than memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from feast import FeatureService, FeatureStore, FeatureView
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status
from feature_repo.offline.oov import OovHistory
from feature_repo.offline.retrieval import micros
from training.impressions import BATCH_ROWS, ID_SUFFIX, TIME, Impressions, count_impressions
from training.impressions import impression_batches as batches_of
from training.reading import NO_ID, FirstEvents, ids_at, ids_logged
from training.vectors import MatrixPlace, gather

Reading = Literal["as_logged", "as_served", "as_of_content"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewHistory:
    """One view's embeddings for N impressions.

    Attributes:
        view: name of the feature view.
        vectors: (1 + V, dim) float32, each distinct embedding once; row 0 is the OOV embedding that stands now. Those
            that stood before have rows as others do, where impressions have them. A numpy memory map where it is large.
        embedding_id: (1 + V,) int64, the id of each row.
        rows: (N,) int32, each impression's row of `vectors`.
        status: (N,) uint8 of `Status`: HIT or OOV.
        fell_back: how many impressions read an embedding of later content than their own time (`as_of_content` alone).
    """

    view: str
    vectors: NDArray[np.float32]
    embedding_id: NDArray[np.int64]
    rows: NDArray[np.int32]
    status: NDArray[np.uint8]
    fell_back: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def oov_share(self) -> float:
        """The share of impressions that have an OOV embedding."""
        return float((self.status == Status.OOV).mean()) if len(self) else 0.0

    @property
    def fell_back_share(self) -> float:
        """The share of impressions that read an embedding of later content than their own time."""
        return self.fell_back / len(self) if len(self) else 0.0

    def of(self, impressions: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """The vectors of some impressions, (M, dim)."""
        found: NDArray[np.float32] = self.vectors[self.rows[impressions]]
        return found

    def torch(self) -> "ViewTensors":
        """The same memory as tensors."""
        return ViewTensors(
            vectors=torch.from_numpy(np.asarray(self.vectors)),
            rows=torch.from_numpy(self.rows),
            status=torch.from_numpy(self.status),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTensors:
    """`ViewHistory` as tensors: `vectors[rows[batch]]` are a batch's embeddings."""

    vectors: torch.Tensor  # (1 + V, dim) float32
    rows: torch.Tensor  # (N,) int32
    status: torch.Tensor  # (N,) uint8 of `Status`


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The embeddings that N impressions are trained on, by view."""

    reading: Reading
    views: Mapping[str, ViewHistory]

    def __getitem__(self, view: str) -> ViewHistory:
        return self.views[view]

    def torch(self) -> dict[str, ViewTensors]:
        """View → tensors."""
        return {name: view.torch() for name, view in self.views.items()}


def historical_embeddings(
    store: FeatureStore,
    impressions: Impressions | Path | str,
    service: FeatureService | str | Sequence[str],
    reading: Reading = "as_logged",
    *,
    place: MatrixPlace | None = None,
    batch_rows: int = BATCH_ROWS,
    progress: bool = False,
) -> History:
    """The embeddings of a click log, in its order.

    Args:
        store: its offline store is asked for ids, whichever it is; the vectors are read from the parts of history.
        impressions: in memory; or a parquet file or a folder of them, read `batch_rows` at a time.
        service: a feature service of encoders' views, its name, or the names of views.
        reading: which embedding an impression gets, see the module's docstring.
        place: where large matrices go; by default into files without a name.
        progress: shows a bar on standard error.

    Raises:
        ImpressionsError: a view's key, or for `as_logged` its column of ids, is missing.
        UnknownIds: logged ids that history does not have.
        ValueError: no such reading, or a view that is not an encoder's.
        feast.errors.FeatureServiceNotFoundException, FeatureViewNotFoundException: there is none of that name.
    """
    if reading not in get_args(Reading):
        raise ValueError(f"reading={reading!r} is not allowed: {', '.join(get_args(Reading))}")
    views = _views(store, service)
    specs = {view.name: _spec(view) for view in views}
    # 1. an id for each impression and view
    total = len(impressions) if isinstance(impressions, Impressions) else count_impressions(impressions)
    ids = {name: np.empty(total, dtype=np.int64) for name in specs}
    fell_back = dict.fromkeys(specs, 0)
    first = {v.name: FirstEvents.read(store, v) for v in views} if reading == "as_of_content" else {}
    oov = {v.name: OovHistory.read(store, v, specs[v.name]) for v in views}
    columns = {TIME, *(spec.join_key for spec in specs.values())}
    if reading == "as_logged":
        columns |= {f"{name}{ID_SUFFIX}" for name in specs}
    with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
        task, done = bar.add_task(f"impressions {reading}", total=total), 0
        for batch in _batches(impressions, columns, batch_rows):
            for name, spec in specs.items():
                if reading == "as_logged":
                    found = ids_logged(batch, spec)
                else:
                    found = ids_at(store, batch, spec, as_served=reading == "as_served")
                if reading == "as_of_content":
                    found, later = first[name].fill(store, batch, spec, found)
                    fell_back[name] += later
                missing = found == NO_ID
                if missing.any():  # what a look-up at that time was answered
                    moments = micros(batch.table[TIME])[missing]
                    found = found.copy()  # a column of the log may not be written to
                    found[missing] = oov[name].at(moments, as_served=reading != "as_of_content")
                ids[name][done : done + len(batch)] = found
            done += len(batch)
            bar.update(task, completed=done)
        # 2. each distinct vector once
        task = bar.add_task("embeddings", total=len(views))
        read = {}
        for view in views:
            read[view.name] = _view_history(
                store, view, oov[view.name], ids.pop(view.name), fell_back[view.name], place or MatrixPlace()
            )
            bar.advance(task)
    return History(reading=reading, views=read)


def _view_history(
    store: FeatureStore,
    view: FeatureView,
    oov: OovHistory,
    ids: NDArray[np.int64],
    fell_back: int,
    place: MatrixPlace,
) -> ViewHistory:
    """`ids`: (N,) of the impressions."""
    distinct, inverse = np.unique(ids, return_inverse=True)
    oov_ids = oov.ids
    missing = np.isin(distinct, oov_ids)  # (distinct,)
    # 1. the OOV embedding that stands now, and of those before it the ones that impressions have
    once = np.unique(oov_ids, return_index=True)[1].tolist()
    used = [i for i in once if oov_ids[i] != oov_ids[-1] and oov_ids[i] in distinct]
    standing = oov.answers([len(oov) - 1, *used])
    # 2. all else from history
    vectors, rows_of_known = gather(store, view, distinct[~missing], standing.vectors, place)
    row = np.empty(len(distinct), dtype=np.int32)  # (distinct,)
    row[~missing] = rows_of_known
    place_of = {int(each): at for at, each in enumerate(standing.embedding_id)}
    row[missing] = [place_of[int(each)] for each in distinct[missing]]
    embedding_id = np.empty(len(vectors), dtype=np.int64)
    embedding_id[: len(standing)] = standing.embedding_id
    embedding_id[row] = distinct
    rows = row[inverse]
    status = np.where(rows < len(standing), np.uint8(Status.OOV), np.uint8(Status.HIT))
    return ViewHistory(
        view=view.name, vectors=vectors, embedding_id=embedding_id, rows=rows, status=status, fell_back=fell_back
    )


def _batches(impressions: Impressions | Path | str, columns: set[str], rows: int) -> Iterator[Impressions]:
    if isinstance(impressions, Impressions):
        table = impressions.table
        table = table.select([name for name in table.column_names if name in columns])
        for start in range(0, table.num_rows, rows):
            yield Impressions(table.slice(start, rows))
    else:
        yield from batches_of(impressions, only=columns, rows=rows)


def _views(store: FeatureStore, service: FeatureService | str | Sequence[str]) -> list[FeatureView]:
    if isinstance(service, str):
        service = store.get_feature_service(service)
    if isinstance(service, FeatureService):
        names = [projection.name for projection in service.feature_view_projections]
    else:
        names = list(service)
    if not names:
        raise ValueError("no view is named: history is read of one view at least")
    return [store.get_feature_view(name) for name in dict.fromkeys(names)]


def _spec(view: FeatureView) -> EncoderSpec:
    spec = EncoderSpec.from_tags(view.tags)
    if spec is None:
        raise ValueError(f"view {view.name!r} is not an encoder's: read it with `get_historical_features`")
    return spec
