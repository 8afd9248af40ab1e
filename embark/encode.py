"""`embark encode`: embeds files, URLs or texts in this process, without any server, and writes them to a file."""

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embark.console import AS_JSON, err, one_line_errors, out, printable
from embark.settings import Settings

if TYPE_CHECKING:
    from embark.encoded_file import EncodedRow
    from encoders.spec import EncoderSpec

AT_ONCE = 256  # inputs between two steps of the bar: some passes of the network
SHOWN_FAILURES = 20
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An input without an embedding: `reason` is the error's name."""

    input: str
    reason: str
    detail: str
    retryable: bool


def check_out(context: click.Context, parameter: click.Parameter, path: Path) -> Path:
    """Refuses what is neither parquet nor npy, before any work."""
    from embark.encoded_file import KINDS

    if path.suffix not in KINDS:
        raise click.BadParameter(f"{path}: the name ends in {' or '.join(KINDS)}")
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.absolute().parent}")
    return path


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT…")
@click.option("--view", required=True, help="The registered encoder, as mobilenet_v3_small__v1.")
@click.option(
    "--out",
    "path",
    required=True,
    callback=check_out,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write here; the name ends in .parquet or .npy.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to compute.")
@click.option("--allow-network", "networks", multiple=True, metavar="NETWORK", help="As for `embark retina`.")
@AS_JSON
@click.pass_obj
@one_line_errors
def encode(
    settings: Settings,
    inputs: tuple[str, ...],
    view: str,
    path: Path,
    device: str | None,
    networks: tuple[str, ...],
    as_json: bool,
) -> None:
    """Embed INPUTs in this process, as Retina would. Exits with 1 if any of them failed.

    For a view of images an INPUT is a file or URL; for one of texts, a file with a text on each line. `-` reads lines
    from standard input: paths and URLs, or texts. Files are read by this command alone, never by Retina. Rows keep the
    order of the inputs; one that failed is null in parquet, and NaN in npy.

    \b
    embark encode --view mobilenet_v3_small__v1 --out cats.parquet cats/*.jpg https://example.com/cat.jpg
    cut -f2 titles.tsv | embark encode --view text_lstm__v1 --out titles.npy -
    """
    from embark.local_encoders import registered_encoder

    settings = settings.overridden({"device": device, "fetch_networks": list(networks)})
    spec = registered_encoder(settings, view)
    with Progress(*COLUMNS, console=err, transient=True) as bar:
        total = None if "-" in inputs or spec.modality == "text" else len(inputs)
        task = bar.add_task(f"loading {view}", total=total)

        def advance(count: int) -> None:
            bar.update(task, advance=count, description=view)

        summary = asyncio.run(encode_all(settings, spec, lines_of(spec.modality, inputs), path, advance))
    if as_json:
        click.echo(json.dumps(summary | {"failures": [asdict(each) for each in summary["failures"]]}, indent=2))
    else:
        print_summary(spec, summary)
    if summary["failed"]:
        raise click.exceptions.Exit(1)


def lines_of(modality: str, inputs: Iterable[str]) -> Iterator[str]:
    """Paths and URLs, or texts; empty lines of a file or pipe are left out.

    Raises:
        click.BadParameter: a file of texts that cannot be read.
    """
    for given in inputs:
        if given == "-":
            yield from _lines(sys.stdin)
        elif modality == "image":
            yield given
        else:
            try:
                with open(given, encoding="utf-8") as file:
                    yield from _lines(file)
            except (OSError, UnicodeDecodeError) as error:
                raise click.BadParameter(f"{given}: {error}", param_hint="INPUT") from None


def _lines(file: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in file if line.strip())


async def encode_all(
    settings: Settings, spec: "EncoderSpec", inputs: Iterator[str], path: Path, advance: Any
) -> dict[str, Any]:
    """Embeds all inputs, and writes them in their order; what became of them, in figures."""
    from embark.encoded_file import encoded_file
    from embark.local_encoders import FilesAndWeb, embed_inputs, load_registered
    from embark.parts import fetcher_of
    from encoders.batching import Batches
    from encoders.compute import Plan, choose_device

    encoder = await asyncio.to_thread(load_registered, settings, spec)
    failures: list[Failure] = []
    count = 0
    began = time.monotonic()
    async with fetcher_of(settings) as web:
        source = FilesAndWeb(web=web)
        batches = Batches(source, plan=Plan.of(choose_device(settings.device).type))
        try:
            with encoded_file(path, spec) as file:
                while some := list(islice(inputs, AT_ONCE)):
                    results = await embed_inputs(batches, encoder, source, some)
                    rows = [_row(given, result) for given, result in zip(some, results, strict=True)]
                    file.add([row for row, _ in rows])
                    failures += [failure for _, failure in rows if failure is not None]
                    count += len(some)
                    source.files.clear()
                    advance(len(some))
        finally:
            batches.close()
    seconds = time.monotonic() - began
    return {
        "view": spec.view,
        "fingerprint": spec.fingerprint,
        "weights": spec.pinned,
        "pretrained": spec.pretrained,
        "out": str(path),
        "inputs": count,
        "embedded": count - len(failures),
        "failed": len(failures),
        "seconds": round(seconds, 3),
        "per_second": round(count / seconds, 1) if seconds else 0.0,
        "failures": failures,
    }


def _row(given: str, result: Any) -> "tuple[EncodedRow, Failure | None]":
    from embark.encoded_file import EncodedRow
    from encoders.encoder import EncoderError

    error = result if isinstance(result, Exception) else result.error
    if error is None:
        return EncodedRow(given=given, vector=result.vector, error="", content_hash=result.content_hash), None
    retryable = isinstance(error, EncoderError) and error.retryable
    failure = Failure(input=given, reason=type(error).__name__, detail=str(error), retryable=retryable)
    content_hash = b"" if result is error else result.content_hash
    row = EncodedRow(given=given, vector=None, error=f"{failure.reason}: {error}", content_hash=content_hash)
    return row, failure


def print_summary(spec: "EncoderSpec", summary: dict[str, Any]) -> None:
    """The failures by name, then one line."""
    failures: Sequence[Failure] = summary["failures"]
    for each in failures[:SHOWN_FAILURES]:
        out.print(f"[red]{each.reason}[/] {escape(printable(each.input))}: {escape(printable(each.detail))}")
    if len(failures) > SHOWN_FAILURES:
        out.print(f"… and {len(failures) - SHOWN_FAILURES} more; --json lists them all")
    seeded = "" if spec.pretrained else f", [yellow]weights {spec.pinned}: NOT pretrained[/]"
    out.print(
        f"{escape(summary['out'])}: {summary['embedded']} embedded by {spec.view}, {summary['failed']} failed,"
        f" in {summary['seconds']:.1f} s{seeded}"
    )
