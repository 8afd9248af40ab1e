"""Makes few large parts of many small ones, and never hides a row from a reader.

    1. small parts are grouped by the day of their rows; a group is read, sorted, and written as compacted parts
    2. the footer of a compacted part names the parts that it was made of: one rename (or one put) makes the rows and
       that promise durable together. Until then nothing has changed; from then on rows are in both
    3. readers of ours skip what a part that they see replaces; others, stock Feast among them, see a row twice, which
       a point-in-time join does not show
    4. after the grace period, longer than any read, a later compaction removes the replaced parts

A crash between any two lines leaves what was there before, or rows in both. On a disk a lock keeps a second compaction
away. On an object store there is none: two at once write the same rows twice, each footer names the same parts, and the
next compaction makes one of both.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore, FeatureView

from feature_repo.offline.columns import Columns
from feature_repo.offline.folder import Entry, Folder
from feature_repo.offline.gather import take
from feature_repo.offline.parts import (
    COMPACTED,
    NAME,
    REPLACES,
    SCHEMA_PART,
    TIE,
    folder_of,
    history_schema,
    is_history,
    part_name,
    replaced_by,
)

logger = logging.getLogger(__name__)

LOCK = ".compaction.lock"
FEWEST = 4  # parts worth reading and writing again: two would be rewritten with each push
MOST = 2000  # parts at once: their names go into one footer, which every reader reads
LARGE = 0.5  # of the target: a part so large stays as it is


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What a compaction of one view's history did.

    Attributes:
        view: its name.
        parts_before, parts_after: parts that count, of readers that know what was replaced.
        rows: rows written anew.
        doubles: rows that were there more than once, alike in every column, and are there once now.
        removed: parts removed that had been replaced longer than the grace period ago.
        waiting: parts that are replaced and still kept.
        busy: another compaction of the view was under way on this machine: nothing was done.
    """

    view: str
    parts_before: int = 0
    parts_after: int = 0
    rows: int = 0
    doubles: int = 0
    removed: int = 0
    waiting: int = 0
    busy: bool = False


def compact_history(
    store: FeatureStore,
    view: str | None = None,
    *,
    grace_seconds: float | None = None,
    target_bytes: int | None = None,
    clock: Callable[[], float] = time.time,
) -> list[Compacted]:
    """Compacts the history of a view, or of all views that keep theirs in parts; safe beside readers and writers.

    Args:
        grace_seconds: how long replaced parts are kept, longer than any read; default: the store's setting.
        target_bytes: about the size of a compacted part's file; default: the store's setting.
        clock: seconds since 1970.

    Raises:
        FeastObjectNotFoundException: there is no such view.
        ValueError: the view's history is not kept in parts.
        OSError: the folder cannot be read or written; what is there is whole.
    """
    settings = store.config.offline_store
    views = [store.get_feature_view(view)] if view else store.list_feature_views()
    found = []
    for each in views:
        folder = folder_of(each.batch_source)
        if folder is None or not is_history(folder):
            if view:
                raise ValueError(f"the history of {view!r} is not kept in parts")
            continue
        found.append(
            compact(
                each,
                grace_seconds=settings.compaction_grace_seconds if grace_seconds is None else grace_seconds,
                target_bytes=target_bytes or settings.compaction_target_mb << 20,
                clock=clock,
            )
        )
    return found


def compact(
    feature_view: FeatureView, *, grace_seconds: float, target_bytes: int, clock: Callable[[], float] = time.time
) -> Compacted:
    """Compacts the history of one view; see `compact_history`."""
    folder = folder_of(feature_view.batch_source)
    if folder is None:
        raise ValueError(f"the history of {feature_view.name!r} is not kept in parts")
    schema, columns = history_schema(folder, feature_view), Columns.of(feature_view.batch_source)
    keys = [n for n in schema.names if n in {columns.named(c.name) for c in feature_view.entity_columns}]
    order = [name for name in (*keys, columns.event, columns.created, TIE) if name in schema.names]
    done = Compacted(view=feature_view.name)
    with folder.locked(LOCK) as alone:
        if not alone:
            return replace(done, busy=True)
        # 1. remove what was replaced long enough ago
        done = _remove(folder, done, grace_seconds, clock())
        _remove_torn(folder, max(grace_seconds, 3600.0), clock())
        # 2. what counts, and what of it is to be rewritten
        entries = [e for e in folder.entries() if not e.name.startswith((".", "_"))]
        replaces = {e.name: _replaces(folder, e.name) for e in entries if e.name.endswith(COMPACTED)}
        replaced = {old for names in replaces.values() for old in names}
        there = {e.name for e in entries}
        counting = [e for e in entries if e.name not in replaced and e.name != SCHEMA_PART]
        groups = _groups(counting, replaces, there, target_bytes)
        # 3. write each group anew
        written = 0
        for group in groups:
            parts, rows, doubles = _rewrite(folder, group, schema, columns.event, order)
            written += parts - len(group)
            done = replace(done, rows=done.rows + rows, doubles=done.doubles + doubles)
            done = replace(done, waiting=done.waiting + (len(group) if parts else 0))
        return replace(done, parts_before=len(counting), parts_after=len(counting) + written)


def _groups(
    counting: Sequence[Entry], replaces: dict[str, tuple[str, ...]], there: set[str], target_bytes: int
) -> list[list[str]]:
    """Parts to be rewritten together: of neighbouring days, up to the target in bytes."""
    groups: list[list[str]] = []
    # Parts of two compactions at once hold the same rows: those go together, whatever their size.
    seen: dict[str, str] = {}
    together: set[str] = set()
    # While what a part replaced is still there, the part stays: without it, those would count again.
    waiting = {name for name, olds in replaces.items() if not there.isdisjoint(olds)}
    for name in (e.name for e in counting if e.name in replaces and e.name not in waiting):
        for old in replaces[name]:
            if old in seen:
                together |= {seen[old], name}
            seen.setdefault(old, name)
    if together:
        groups.append(sorted(together))

    def may(entry: Entry) -> bool:
        return entry.name not in together | waiting and entry.size < LARGE * target_bytes

    group: list[str] = []
    size = 0
    for entry in sorted((e for e in counting if may(e)), key=lambda e: (_first_day(e.name), e.name)):
        if group and (size + entry.size > target_bytes or len(group) == MOST):
            groups.append(group)
            group, size = [], 0
        group.append(entry.name)
        size += entry.size
    groups.append(group)
    return [g for g in groups if len(g) >= FEWEST or (g and set(g) <= together)]


def _first_day(name: str) -> str:
    match = NAME.fullmatch(name)
    return match.group(1) if match else ""


def _rewrite(
    folder: Folder, names: Sequence[str], schema: pa.Schema, event: str, order: Sequence[str]
) -> tuple[int, int, int]:
    """Writes the rows of parts as one compacted part: parts written, rows, rows that were there more than once."""
    try:
        tables = [_read(folder, name, schema) for name in names]
    except FileNotFoundError:  # removed by a compaction elsewhere: what they held is in its parts
        logger.warning("a compaction of %s found parts gone: another one is under way", folder.path)
        return 0, 0, 0
    table = pa.concat_tables(tables, promote_options="default")
    del tables
    rows = table.num_rows
    table = _without_doubles(_sorted(table, event, order), order)
    table = table.replace_schema_metadata({REPLACES: json.dumps(list(names)).encode()})
    folder.write(part_name(table, event, COMPACTED), table)
    return 1, table.num_rows, rows - table.num_rows


def _read(folder: Folder, name: str, schema: pa.Schema) -> pa.Table:
    """A part as it is, with the types of the view's columns: what a view does not know any more is kept too."""
    table = pq.read_table(folder.file(name), filesystem=folder.filesystem).replace_schema_metadata(None)
    known = set(schema.names)
    return table.cast(pa.schema([schema.field(f.name) if f.name in known else f for f in table.schema]))


def _sorted(table: pa.Table, event: str, order: Sequence[str]) -> pa.Table:
    """Rows by day, so that a join reads few of them; in a day by key and time, so that doubles are neighbours."""
    keyed = table.select(list(order)).append_column("__day", pc.floor_temporal(table[event], unit="day"))
    # Stable: rows that are alike in all of these stay in the order of their parts.
    rows = pc.sort_indices(keyed, sort_keys=[(name, "ascending") for name in ("__day", *order)])
    return take(table, rows.to_numpy().astype(np.int64))


def _without_doubles(table: pa.Table, order: Sequence[str]) -> pa.Table:
    """Without rows that equal the row before them in every column."""
    if table.num_rows < 2:
        return table
    same = np.ones(table.num_rows - 1, dtype=np.bool_)
    for name in order:
        after, before = table[name].slice(1), table[name].slice(0, table.num_rows - 1)
        equal = pc.or_(pc.fill_null(pc.equal(after, before), False), pc.and_(pc.is_null(after), pc.is_null(before)))
        same &= equal.to_numpy()
    candidates = (np.flatnonzero(same) + 1).tolist()  # few: a replay leaves another created time
    doubles = [i for i in candidates if table.slice(i, 1).equals(table.slice(i - 1, 1))]
    return take(table, np.delete(np.arange(table.num_rows), doubles)) if doubles else table


def _remove(folder: Folder, done: Compacted, grace_seconds: float, now: float) -> Compacted:
    """Removes the parts that were replaced longer than the grace period ago."""
    entries = {e.name: e for e in folder.entries()}
    for entry in [e for e in entries.values() if e.name.endswith(COMPACTED) and not e.name.startswith(".")]:
        old = [name for name in _replaces(folder, entry.name) if name in entries]
        if now - entry.modified < grace_seconds:
            done = replace(done, waiting=done.waiting + len(old))
            continue
        for name in old:
            folder.remove(name)
        done = replace(done, removed=done.removed + len(old))
    return done


def _remove_torn(folder: Folder, age_seconds: float, now: float) -> None:
    """Removes temporary files that a killed writer left: no write takes that long."""
    if folder.local:
        for entry in folder.entries(".tmp"):
            if entry.name.startswith(".") and now - entry.modified > age_seconds:
                folder.remove(entry.name)


def _replaces(folder: Folder, name: str) -> tuple[str, ...]:
    with contextlib.suppress(FileNotFoundError):
        return replaced_by(folder, name)
    return ()
