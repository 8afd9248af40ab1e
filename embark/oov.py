"""`embark oov`: what a view answers for embeddings that are not there."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embark.backfill import registered
from embark.console import AS_JSON, one_line_errors, out
from embark.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from encoders.spec import EncoderSpec
    from feature_repo.embeddings import OovEmbedding

VIEW = click.option("--view", required=True, help="Feature view of the encoder, as text_lstm__v1.")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
SHOWN = 8  # numbers of a vector


@click.group()
def oov() -> None:
    """Show or set the OOV embedding of a view: what is answered for an embedding that is not there.

    \b
    embark oov show --view text_lstm__v1
    embark oov set --view text_lstm__v1 --from mean.npy
    """


@oov.command("set")
@VIEW
@click.option("--from", "path", type=FILE, metavar="FILE.npy", help="An array of the view's length, of floats.")
@click.option(
    "--checkpoint",
    "run",
    type=click.Path(exists=True, path_type=Path),
    help="A run of `embark train`, or its model.pt: the OOV embedding that it learned for this view.",
)
@click.option("--zeros", is_flag=True, help="What stands where nothing was ever set.")
@AS_JSON
@click.pass_obj
@one_line_errors
def set_(settings: Settings, view: str, path: Path | None, run: Path | None, zeros: bool, as_json: bool) -> None:
    """Set a view's OOV embedding. Running EmbArks answer it within seconds; nothing is restarted.

    \b
    embark oov set --view text_lstm__v1 --from mean.npy
    embark oov set --view mobilenet_v3_small__v1 --checkpoint runs/ctr
    embark oov set --view text_lstm__v1 --zeros

    Each has an embedding id, which look-ups answer: history gives the very one that an impression was served, also
    after another one was set. A model of `embark train` needs none of it: it has its own for whatever is missing.
    """
    import numpy as np

    from embark.repo import open_store
    from feature_repo.online_rows import FeastOnlineRows
    from materializer.archive import FeastArchive
    from materializer.clock import SystemClock
    from materializer.oov import OovRefused, checked, set_oov

    if (path is not None) + (run is not None) + zeros != 1:
        raise click.UsageError("which one? Give one of --from FILE.npy, --checkpoint RUN and --zeros")
    store = open_store(settings.repo)
    spec = registered(store, view)
    array = (
        read_array(path) if path is not None else learned(run, spec) if run is not None else np.zeros(spec.dim, "f4")
    )
    try:
        vector = checked(spec, array)
    except OovRefused as refusal:
        raise click.BadParameter(f"{path or run}: {refusal}", param_hint="--from" if path else "--checkpoint") from None
    rows = FeastOnlineRows(store)
    stands, new = set_oov(spec, vector, FeastArchive(store, rows), rows, SystemClock())
    show_one(spec, stands, as_json, new=new)


@oov.command("show")
@VIEW
@AS_JSON
@click.pass_obj
@one_line_errors
def show(settings: Settings, view: str, as_json: bool) -> None:
    """Show a view's OOV embedding, and which it had before.

    \b
    embark oov show --view text_lstm__v1 --json
    """
    from embark.repo import open_store
    from feature_repo.offline.oov import OovHistory
    from feature_repo.online_rows import FeastOnlineRows, served_oov

    store = open_store(settings.repo)
    spec = registered(store, view)
    stands = served_oov(FeastOnlineRows(store), spec)
    ever = OovHistory.read(store, store.get_feature_view(view), spec).embeddings
    before = list({each.embedding_id: each for each in ever if each.embedding_id != stands.embedding_id}.values())
    show_one(spec, stands, as_json, before=before)


def read_array(path: Path) -> "NDArray[Any]":
    """The array of a file that numpy has saved.

    Raises:
        click.BadParameter: it holds none, or one of objects.
    """
    import numpy as np

    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise click.BadParameter(f"{path} is no array of numpy: {error}", param_hint="--from") from None
    if not isinstance(found, np.ndarray):
        raise click.BadParameter(f"{path} holds several arrays: save one, with numpy.save", param_hint="--from")
    return found


def learned(run: Path, spec: "EncoderSpec") -> "NDArray[np.float32]":
    """The OOV embedding that a model learned for a view, (dim,).

    Raises:
        ModelError: there is no model.
        click.BadParameter: it takes nothing from this view.
    """
    from training.saved import load_model

    trained = load_model(run)
    parts = [part for part, view in trained.config.views.items() if view == spec.view]
    if not parts:
        raise click.BadParameter(
            f"{run} takes nothing from {spec.view}; it has {', '.join(trained.config.views.values()) or 'no view'}",
            param_hint="--checkpoint",
        )
    vector: NDArray[np.float32] = trained.model.part(parts[0]).oov_embedding.numpy()
    return vector


def show_one(
    spec: "EncoderSpec",
    stands: "OovEmbedding",
    as_json: bool,
    *,
    new: bool | None = None,
    before: "list[OovEmbedding] | None" = None,
) -> None:
    """What stands, as text or JSON; `new`: whether it was just set, `before`: those that stood earlier."""
    if as_json:
        found = {"view": spec.view} | described(stands) | {"vector": stands.vector.tolist()}
        if new is not None:
            found |= {"new": new}
        if before is not None:
            found |= {"before": [described(each) for each in before]}
        click.echo(json.dumps(found, indent=2))
        return
    first = ", ".join(f"{value:.4g}" for value in stands.vector[:SHOWN])
    more = f", … ({spec.dim} numbers)" if spec.dim > SHOWN else ""
    told = "" if new is None else "now " if new else "stood already: "
    out.print(f"{spec.view}: {told}{line(stands)}\n  [{first}{more}]", markup=False)
    for each in reversed(before or []):
        out.print(f"  before: {line(each)}", markup=False)


def described(each: "OovEmbedding") -> dict[str, Any]:
    return {"embedding_id": each.embedding_id, "set_at": set_at(each)}


def set_at(each: "OovEmbedding") -> str | None:
    """When it was set; None: the zeros that nobody has set."""
    if not each.event_time:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=each.event_time)).isoformat()


def line(each: "OovEmbedding") -> str:
    return f"embedding id {each.embedding_id}, " + (f"set at {set_at(each)}" if each.event_time else "zeros, never set")
