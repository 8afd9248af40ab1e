"""Claims: on archived embeddings an epoch takes less than a fiftieth of the time that training the networks end to end
takes; image and text each add to AUC beyond noise; OOV dropout makes missing embeddings cost less.

    uv run python -m benchmarks.transfer [--device cpu|cuda] [--json] [--fast] [--check]

One synthetic log whose truth is known (`training.synthetic`: the effect of a picture is measured from its pixels,
test pictures come from photographs that training never saw), three seeds of weights and data order. Ours: archived
image and text. The peer: convolutions and an LSTM trained with the rest, on pictures that are already decoded and in
memory, each distinct one once a batch, for the same budget of CPU time. The limit: the probabilities that the clicks
were drawn from. No pretrained weights are needed: the archived encoders are seeded, NOT pretrained; what random
convolutions keep of colours and edges is what can be transferred. Times are CPU seconds of one thread, since machines
are shared; the time to embed each input once is given beside. Five minutes, or half of one with --fast.

With --device cuda only what an epoch takes is measured, there, in seconds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.turns import options, publish
from encoders.compute import choose_device
from encoders.encoder import Encoder
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec
from training.config import LEARNED, NONE, Config, parse
from training.evaluate import of_clicks
from training.examples import Examples
from training.impressions import Impressions
from training.inputs import COLUMNS
from training.metrics import auc
from training.predict import predict
from training.prepare import held_out, prepare
from training.saved import Trained, new_model
from training.synthetic import SyntheticLog, make_log
from training.train import Material, train

FASTER = 50.0
IMAGE = EncoderSpec(
    name="mobilenet_v3_small",
    version="v1",
    modality="image",
    dim=576,
    network="torchvision:mobilenet_v3_small",
    weights="seeded:0",
    pinned="seeded:0",
)
TEXT = EncoderSpec(
    name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0", pinned="seeded:0"
)
ARCHIVED = {"image": IMAGE.view, "text": TEXT.view}
OURS, PEER, BLIND, MUTE, RIGID = (
    "archived image and text",
    "end to end, same CPU time",
    "no image",
    "no text",
    "archived, no OOV dropout",
)
VARIANTS: Mapping[str, Mapping[str, object]] = {
    OURS: ARCHIVED,
    BLIND: ARCHIVED | {"image": NONE},
    MUTE: ARCHIVED | {"text": NONE},
    RIGID: ARCHIVED | {"oov_dropout": 0.0},
}
OOV_RATES = (0.0, 0.05, 0.2, 0.5)
BATCH = 32


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        batches: of an epoch end to end that are timed; an epoch is as many times longer as it has more batches.
    """

    items: int
    impressions: int
    epochs: int
    seeds: int
    batches: int


FULL = Size(items=1500, impressions=100_000, epochs=3, seeds=3, batches=4)
FAST = Size(items=40, impressions=1500, epochs=1, seeds=1, batches=2)


@dataclass(slots=True)
class Archive:
    """Embeddings in memory, each distinct key once, in the place of a feature store's history."""

    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    rows: dict[str, dict[object, int]] = field(default_factory=dict)

    def fill(self, spec: EncoderSpec, keys: Sequence[str], contents: Sequence[bytes], device: str) -> float:
        """Embeds each key's content once; CPU seconds."""
        encoder: Encoder = load_encoder(spec, device)
        began = time.process_time()
        found = [
            encoder.encode([encoder.prepare(each) for each in contents[start : start + BATCH]])
            for start in range(0, len(contents), BATCH)
        ]
        self.vectors[spec.view] = np.concatenate([np.zeros((1, spec.dim), np.float32), *found])
        self.rows[spec.view] = {key: row for row, key in enumerate(keys, 1)}
        return time.process_time() - began

    def embeddings(self, impressions: Impressions, view: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows = self.rows[view]
        keys = impressions.values(COLUMNS["image" if view == IMAGE.view else "text"])
        return self.vectors[view], np.array([rows[key] for key in keys], dtype=np.int64)


def config(log: SyntheticLog, size: Size, model: Mapping[str, object], seed: int = 0) -> Config:
    return parse(
        {
            "data": {
                **{split: log.folder / f"{split}.parquet" for split in ("train", "valid", "test")},
                "images": log.folder / "images",
            },
            "model": {
                "item": ("publisher", "category"),
                "context": ("user_segment", "device", "hour"),
                "width": 32,
                "components": 2,
                "dropout": 0.3,
                "oov_dropout": 0.15,
                "conv": {"size": 96, "channels": (32, 64, 128), "dim": 64},
                "lstm": {"width": 64, "dim": 64},
                **model,
            },
            "training": {
                "epochs": size.epochs,
                "patience": 2,
                "batch_size": 256,
                "learning_rate": 5e-4,
                "weight_decay": 1.0,
                "seed": seed,
            },
        }
    )


class Budget:
    """Ends training when its CPU time is spent."""

    def __init__(self, seconds: float) -> None:
        self._end = time.process_time() + seconds

    def spent(self) -> bool:
        return time.process_time() > self._end


class Batches:
    """Time of each batch, and the end after some of them."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self.times = [clock()]
        self.of = 0

    def batch(self, epoch: int, done: int, of: int, loss: float) -> None:
        self.times.append(self._clock())
        self.of = of

    def epoch(self, epoch: Any, best: bool) -> None: ...

    def enough(self) -> bool:
        return len(self.times) > self._most

    @property
    def epoch_seconds(self) -> float:
        """Of all batches of an epoch, by the median one; the first warms up."""
        return float(np.median(np.diff(self.times)[1:])) * self.of


@dataclass(slots=True)
class Bench:
    """A log, its archive, and what was prepared from both."""

    log: SyntheticLog
    size: Size
    device: torch.device = field(default_factory=choose_device)
    archive: Archive = field(default_factory=Archive)
    embedded_seconds: float = 0.0

    def __post_init__(self) -> None:
        items = self.log.items
        jpegs = [self.log.jpeg(item) for item in items["item_id"]]
        self.embedded_seconds += self.archive.fill(IMAGE, items["image_url"].tolist(), jpegs, str(self.device))
        titles = items["text"].drop_duplicates().tolist()
        self.embedded_seconds += self.archive.fill(TEXT, titles, [title.encode() for title in titles], str(self.device))

    def trained(self, model: Mapping[str, object], material: Material, seed: int, **stop: Any) -> tuple[Trained, float]:
        """A model, and the CPU seconds of training it."""
        began = time.process_time()
        with tempfile.TemporaryDirectory() as run:
            outcome = train(
                config(self.log, self.size, model, seed),
                material,
                Path(run),
                device=self.device,
                clock=time.process_time,
                **stop,
            )
        return outcome.trained, time.process_time() - began

    def epoch_seconds(self, model: Mapping[str, object], material: Material, batches: int) -> float:
        """Seconds of an epoch of training: of the CPU, or of the clock where a GPU trains."""
        watch = Batches(batches, time.process_time if self.device.type == "cpu" else time.perf_counter)
        self.trained(model, material, 0, watch=watch, should_stop=watch.enough)
        return watch.epoch_seconds

    def scores(self, trained: Trained, held: Examples) -> NDArray[np.float64]:
        ctr: NDArray[np.float64] = predict(trained.model, held).moments()[0].numpy()
        return ctr


def main() -> None:
    given = options(__doc__, _arguments)
    size, device = FAST if given.fast else FULL, choose_device(given.device)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        with console.status("making a log and embedding it"):
            bench = Bench(make_log(0, size.items, size.impressions, folder), size, device)
        learned = {"image": LEARNED, "text": LEARNED}
        every = {**VARIANTS, PEER: learned}
        with console.status("preparing"):
            material = {name: prepare(config(bench.log, size, model), bench.archive) for name, model in every.items()}

        # 1. what an epoch costs, turn by turn
        cost: dict[str, list[float]] = {OURS: [], PEER: []}
        for _ in range(2):
            for name in cost:
                batches = size.batches if name == PEER else 10 * size.batches
                cost[name].append(bench.epoch_seconds(every[name], material[name], batches))
        epoch = {name: float(np.median(times)) for name, times in cost.items()}
        ratio = epoch[PEER] / epoch[OURS]
        faster = (
            f"an epoch end to end takes {ratio:.0f} times as long as on archived embeddings (more than {FASTER:.0f})"
        )
        if device.type != "cpu":
            timed = [{"way": name, "epoch, s": round(seconds, 3)} for name, seconds in epoch.items()]
            title = f"Training on {torch.cuda.get_device_name(device)}"
            publish(title, timed, {} if given.fast else {faster: ratio > FASTER}, given)
            return

        # 2. what models are worth, seed by seed; the peer has the CPU time that ours took
        found: dict[str, list[dict[str, float | None]]] = {name: [] for name in every}
        held = {
            name: held_out(config(bench.log, size, m).data.test, _untrained(bench, m, material[name]), bench.archive)[1]
            for name, m in every.items()
        }
        by_rate: dict[tuple[str, float], list[float]] = {(n, r): [] for n in (OURS, RIGID) for r in OOV_RATES}
        last: dict[str, NDArray[np.float64]] = {}
        for seed in track(range(size.seeds), "training", console=console, transient=True):
            budget = 0.0
            for name, model in every.items():
                if name == PEER:
                    stop: dict[str, Callable[[], bool]] = {"should_stop": Budget(budget).spent}
                    trained, _ = bench.trained(model, material[name], seed, **stop)
                else:
                    trained, seconds = bench.trained(model, material[name], seed)
                    budget = seconds if name == OURS else budget
                last[name] = bench.scores(trained, held[name])
                found[name].append(of_clicks(last[name], held[name]))
                if name in (OURS, RIGID):
                    for rate in OOV_RATES:
                        missing = held[name].with_oov(rate, seed)
                        by_rate[name, rate].append(auc_of(bench.scores(trained, missing), missing))
        truth = held[OURS]
        assert truth.true_ctr_N is not None  # noqa: S101 - a synthetic log has it
        limit = of_clicks(truth.true_ctr_N, truth)
        gains = {
            name: (float(np.mean(gain)), noise(gain, last[OURS], last[name], truth))
            for name in (BLIND, MUTE)
            if (gain := [_auc(a) - _auc(b) for a, b in zip(found[OURS], found[name], strict=True)])
        }
    rows: list[dict[str, Any]] = [_row(name, epoch.get(name), results) for name, results in found.items()]
    rows.append(_row("limit: the true CTR", None, [limit]))
    for (name, rate), aucs in by_rate.items():
        rows.append(_row(f"{name}, {rate:.0%} OOV", None, [{"auc": value} for value in aucs]))
    rows.append(_row(f"(embedding {size.items} items once: {bench.embedded_seconds:.1f} CPU s)", None, []))
    lost = {n: np.mean(by_rate[n, 0.0]) - np.mean(by_rate[n, 0.5]) for n in (OURS, RIGID)}
    claims = {
        faster: ratio > FASTER,
        **{
            f"{what} adds {gains[name][0]:.4f} to AUC (noise {gains[name][1]:.4f}; more than twice it)": gains[name][0]
            > 2 * gains[name][1]
            for name, what in ((BLIND, "the image"), (MUTE, "the text"))
        },
        f"50 % OOV cost {lost[OURS]:.4f} of AUC with OOV dropout and {lost[RIGID]:.4f} without": bool(
            lost[OURS] < lost[RIGID]
        ),
    }
    publish("Transfer learning (seeded encoders, NOT pretrained)", rows, {} if given.fast else claims, given)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where networks are trained")


def _untrained(bench: Bench, model: Mapping[str, object], material: Material) -> Trained:
    """What `held_out` needs of a model: its config and vocabularies."""
    return new_model(config(bench.log, bench.size, model), material.vocabularies, material.dims)


def auc_of(ctr: NDArray[np.float64], examples: Examples) -> float:
    found = auc(ctr, examples.clicks_N, examples.impressions_N)
    return float("nan") if found is None else found


def _auc(clicks: Mapping[str, float | None]) -> float:
    found = clicks["auc"]
    return float("nan") if found is None else found


def noise(gains: Sequence[float], ours: NDArray[np.float64], other: NDArray[np.float64], examples: Examples) -> float:
    """Standard error of a gain in AUC: that of seeds, or that of the test impressions, whichever is larger.

    The second by 50 resamplings of the examples, the same ones for both models.
    """
    draw, resampled = np.random.default_rng(0), []
    for _ in range(50):
        at = draw.integers(0, len(examples), len(examples))
        clicks, impressions = examples.clicks_N[at], examples.impressions_N[at]
        pair = [auc(ctr[at], clicks, impressions) or 0.0 for ctr in (ours, other)]
        resampled.append(pair[0] - pair[1])
    of_seeds = float(np.std(gains, ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else 0.0
    return max(of_seeds, float(np.std(resampled)))


def _row(way: str, epoch: float | None, results: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Means over seeds, and the spread of AUC."""

    def mean(name: str) -> float | None:
        values = [value for each in results if (value := each.get(name)) is not None]
        return round(float(np.mean(values)), 4) if values else None

    aucs = [_auc(each) for each in results]
    return {
        "way": way,
        "epoch, CPU s": None if epoch is None else round(epoch, 2),
        "AUC": mean("auc"),
        "± over seeds": round(float(np.std(aucs, ddof=1)), 4) if len(aucs) > 1 else None,
        "AUC in contexts": mean("grouped_auc"),
        "log-loss": mean("log_loss"),
        "ECE": mean("ece"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # on a shared machine, threads that wait for each other spin
    main()
