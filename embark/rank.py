"""`embark rank`: scores candidates in a context with a trained model."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from embark.console import AS_JSON, one_line_errors, out
from embark.settings import Settings

if TYPE_CHECKING:
    from training.ranker import Ranking

PIPE = Path("-")


class Pair(click.ParamType[tuple[str, str]]):
    """COLUMN=VALUE."""

    name = "column=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        column, equals, given = value.partition("=")
        if not equals or not column:
            self.fail(f"{value!r} is no COLUMN=VALUE, as hour=8", param, ctx)
        return column, given


@click.command()
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--context", "pairs", type=Pair(), multiple=True, help="A column of the context; may be repeated.")
@click.option(
    "--from",
    "path",
    required=True,
    metavar="FILE|-",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="Candidates: parquet or CSV with image_url, text and the item's columns; - reads CSV from a pipe.",
)
@click.option(
    "--explore", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Deviations above the mean."
)
@click.option("--budget", type=click.FloatRange(min=0.01), metavar="SECONDS", help="EMBARK_RANK_BUDGET otherwise.")
@click.option("--top", type=click.IntRange(min=1), help="Show so many.")
@AS_JSON
@click.pass_obj
@one_line_errors
def rank(
    settings: Settings,
    run: Path,
    pairs: tuple[tuple[str, str], ...],
    path: Path,
    explore: float,
    budget: float | None,
    top: int | None,
    as_json: bool,
) -> None:
    """Rank candidates in a context with the model of RUN and the embeddings that EmbArk has.

    \b
    embark rank runs/ctr --from candidates.csv --context hour=8 --context device=phone --top 10
    embark rank runs/ctr --from candidates.csv --context hour=8 --explore 1 --json

    The score is the expected click-through rate, with --explore so many standard deviations above it: what is not known
    well is then tried. Embeddings that do not come within the budget are replaced by the model's OOV embedding.
    """
    from serving.client import EmbArkClient
    from training.ranker import Ranker
    from training.saved import load_model

    trained = load_model(run)
    known = trained.config.model.context
    unknown = sorted({column for column, _ in pairs} - set(known))
    if unknown:
        raise click.BadParameter(
            f"the model's context has no {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    candidates = read_candidates(path)
    with (
        EmbArkClient(settings.embark_address) as client,
        Ranker(trained, client, budget_seconds=budget or settings.rank_budget, exploration=explore) as ranker,
    ):
        ranking = ranker.rank(dict(pairs), candidates)
    shown = ranking.order[:top].tolist()
    if as_json:
        click.echo(json.dumps(described(ranking, candidates, shown), indent=2, default=str))
    else:
        show(ranking, candidates, shown)


def read_candidates(path: Path) -> list[dict[str, object]]:
    """Rows of a parquet or CSV file.

    Raises:
        click.BadParameter: it is neither.
    """
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(sys.stdin if path == PIPE else path, dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:
        raise click.BadParameter(f"{path} holds no candidates: {error}", param_hint="--from") from None
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def described(ranking: "Ranking", candidates: list[dict[str, object]], shown: list[int]) -> dict[str, Any]:
    """A ranking as JSON, the best first."""
    from feature_repo.embeddings import Status

    return {
        "milliseconds": round(ranking.milliseconds, 3),
        "late": dict(ranking.late),
        "candidates": [
            {
                "position": i,
                "score": float(ranking.score[i]),
                "ctr": float(ranking.mean[i]),
                "deviation": float(ranking.deviation[i]),
                "interval_90%": [float(ranking.low[i]), float(ranking.high[i])],
                "status": {part: Status(int(status[i])).name for part, status in ranking.status.items()},
                "embedding_id": {view: int(ids[i]) for view, ids in ranking.embedding_id.items()},
                "candidate": candidates[i],
            }
            for i in shown
        ],
    }


def show(ranking: "Ranking", candidates: list[dict[str, object]], shown: list[int]) -> None:
    """A row a candidate, the best first."""
    found = described(ranking, candidates, shown)
    table = Table(box=None, pad_edge=False)
    for column in ("score", "CTR", "90 % between", "status", "candidate"):
        table.add_column(column, overflow="fold")
    for each in found["candidates"]:
        low, high = each["interval_90%"]
        of = each["candidate"]
        table.add_row(
            f"{each['score']:.4f}",
            f"{each['ctr']:.4f}",
            f"{low:.4f} and {high:.4f}",
            ", ".join(f"{part} {status}" for part, status in each["status"].items()),
            escape(str(of.get("text") or of.get("image_url") or of)),
        )
    out.print(table)
    out.print(f"{len(candidates)} candidates in {ranking.milliseconds:.1f} ms")
    for view, why in ranking.late.items():
        out.print(f"[yellow]{view}: {escape(why)}: scored with the model's OOV embedding[/]")
