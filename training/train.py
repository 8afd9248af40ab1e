"""Training of the click-through-rate model, from top to bottom.

    embark train ctr.toml --run runs/ctr

On archived embeddings an epoch of 100,000 examples takes about two seconds on two cores, and a validation AUC close to
the best is reached within ten; `benchmarks/RESULTS.md` has the figures. Killed at any moment and started again, it goes
on from its last checkpoint and ends with the very weights that it would have had.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from torch import Tensor

from training.config import Config
from training.examples import OOV_ROW, Examples, Inputs
from training.metrics import auc, few, log_loss
from training.mixture import Mixture
from training.predict import nll, predict
from training.saved import (
    CHECKPOINT,
    MODEL,
    TENSORBOARD,
    ModelError,
    Trained,
    Vocabularies,
    load_model,
    new_model,
    read_whole,
    save_model,
    write_whole,
)

LONGEST_GRADIENT = 5.0  # a cell of 10,000 impressions must not outweigh a whole batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What is trained on.

    Attributes:
        train, valid: examples.
        vocabularies: of the categorical columns, from the training data.
        dims: of each part's embedding.
    """

    train: Examples
    valid: Examples
    vocabularies: Vocabularies
    dims: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """A line of the learning curves: negative log-likelihoods per example, log-loss per impression."""

    epoch: int
    train_nll: float
    valid_nll: float
    valid_log_loss: float
    valid_auc: float | None
    seconds: float


@dataclass(slots=True)
class Progress:
    """Where training stands: with weights, optimizer and random numbers, all that it needs to go on."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # of the epoch that is under way
    loss_sum: float = 0.0  # of its batches
    seconds: float = 0.0  # that it has taken
    best: float = float("inf")  # validation
    stale: int = 0  # epochs since then
    curve: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        return cls(**values)


class Watch(Protocol):
    """Who is told how training goes."""

    def batch(self, epoch: int, done: int, of: int, loss: float) -> None: ...

    def epoch(self, epoch: Epoch, best: bool) -> None: ...


class Unwatched:
    """Tells nobody."""

    def batch(self, epoch: int, done: int, of: int, loss: float) -> None: ...

    def epoch(self, epoch: Epoch, best: bool) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What training came to.

    Attributes:
        trained: the best model by validation; that of the last step where none was validated yet.
        curve: a line an epoch.
        stopped: whether it was stopped from outside, and can go on.
        resumed_at: the step that it went on from; 0 for a new run.
    """

    trained: Trained
    curve: list[Epoch]
    stopped: bool
    resumed_at: int


def train(
    config: Config,
    material: Material,
    run: Path,
    *,
    device: torch.device | None = None,
    watch: Watch | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Trains a model, or goes on training it.

    Args:
        config: what is trained, and how.
        material: the examples.
        run: folder of the run; a checkpoint in it is gone on from.
        device: where it computes; the CPU unless another is given.
        watch: told of batches and epochs.
        should_stop: asked before each batch; on True a checkpoint is written and training ends.
        clock: seconds, for the time between checkpoints and that of an epoch.

    Raises:
        ModelError: the folder holds a run of another config, or its checkpoint cannot be read.
    """
    settings, device, watch = config.training, device or torch.device("cpu"), watch or Unwatched()
    run.mkdir(parents=True, exist_ok=True)

    # 1. seeds: one stream of random numbers for initial weights and dropout, another one an epoch for the data's order
    torch.manual_seed(settings.seed)

    # 2. the model; archived embeddings are scaled by what the training data has of them
    trained = new_model(config, material.vocabularies, material.dims, material.train.base_ctr)
    model = trained.model.to(device)
    for name in config.views:
        model.part(name).standardise(_embeddings(material.train.parts[name]).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)

    # 3. where an earlier run was stopped
    progress = _resume(run / CHECKPOINT, config, model, optimizer) or Progress()
    resumed_at, saved_at = progress.step, clock()
    forward = torch.compile(model, dynamic=True) if settings.compile else model
    logs = SummaryWriter(str(run / TENSORBOARD), purge_step=resumed_at + 1)

    def checkpoint() -> None:
        write_whole(run / CHECKPOINT, _state(config, model, optimizer, progress))

    try:
        while progress.epoch < settings.epochs and progress.stale < settings.patience:
            # 4. an epoch: forward, backward, step
            began = clock() - progress.seconds
            model.train()
            batches = _batches(len(material.train), settings.batch_size, settings.seed, progress.epoch)
            for at in batches[progress.batch :]:
                if should_stop():
                    checkpoint()
                    return _outcome(run, trained, progress, resumed_at, stopped=True)
                with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                    mixture: Mixture = forward(material.train.batch(at).to(device))
                clicks_B, impressions_B = (counts.to(device) for counts in material.train.counts(at))
                loss = -mixture.log_likelihood(clicks_B, impressions_B, config.model.noise).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), LONGEST_GRADIENT)
                optimizer.step()
                progress.step += 1
                progress.batch += 1
                progress.loss_sum += loss.item()  # waits for the device
                progress.seconds = clock() - began
                logs.add_scalar("train/batch_nll", loss.item(), progress.step)
                watch.batch(progress.epoch + 1, progress.batch, len(batches), loss.item())
                if clock() - saved_at > settings.checkpoint_seconds:
                    checkpoint()
                    saved_at = clock()

            # 5. validation; the best model is kept, and training ends when it has not become better for a while
            epoch = _validated(model, material.valid, device, progress, len(batches))
            best = epoch.valid_nll < progress.best
            progress.best, progress.stale = min(epoch.valid_nll, progress.best), 0 if best else progress.stale + 1
            progress.curve.append(asdict(epoch))
            progress.epoch, progress.batch, progress.loss_sum, progress.seconds = progress.epoch + 1, 0, 0.0, 0.0
            for name in ("train_nll", "valid_nll", "valid_log_loss", "valid_auc"):
                if (value := getattr(epoch, name)) is not None:
                    logs.add_scalar(name.replace("_", "/", 1), value, progress.step)
            watch.epoch(epoch, best)

            # 6. the model before the checkpoint: killed in between, the epoch is done again and writes the same model
            if best:
                save_model(run / MODEL, trained)
            checkpoint()
            saved_at = clock()
    finally:
        logs.close()
    return _outcome(run, trained, progress, resumed_at, stopped=False)


def _batches(count: int, size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The positions of each batch of an epoch, in an order that seed and epoch alone decide."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    return [order[start : start + size] for start in range(0, count, size)]


def _embeddings(inputs: Inputs) -> Tensor:
    """Embeddings that the training data has, (U, D): all of them, or 5,000 drawn from them."""
    rows = np.unique(inputs.row_N)
    rows = rows[rows != OOV_ROW]
    return inputs.table.take(rows[few(len(rows))])[0]


def _validated(
    model: torch.nn.Module, valid: Examples, device: torch.device, progress: Progress, batches: int
) -> Epoch:
    mixture = predict(model, valid, device)
    ctr = mixture.moments()[0].numpy()
    return Epoch(
        epoch=progress.epoch + 1,
        train_nll=progress.loss_sum / batches,
        valid_nll=nll(mixture, valid),
        valid_log_loss=log_loss(ctr, valid.clicks_N, valid.impressions_N),
        valid_auc=auc(ctr, valid.clicks_N, valid.impressions_N),
        seconds=progress.seconds,
    )


def _state(
    config: Config, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> dict[str, Any]:
    return {
        "config": config.model_dump(mode="json"),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": asdict(progress),
    }


def _resume(path: Path, config: Config, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Sets everything to where a run was stopped; None where there is none."""
    if not path.exists():
        return None
    state = read_whole(path)
    before, now = state["config"], config.model_dump(mode="json")
    # More epochs, more patience: these continue a run. Anything else would be another one.
    for name in ("epochs", "patience", "checkpoint_seconds"):
        before["training"].pop(name), now["training"].pop(name)
    if before != now:
        changed = [f"{s}.{k}" for s in now for k in now[s] if before.get(s, {}).get(k) != now[s][k]]
        raise ModelError(
            f"{path.parent} holds a run of another config ({', '.join(changed)} differ): "
            "name another folder with --run, or begin anew with --restart"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Progress.of(state["progress"])


def _outcome(run: Path, trained: Trained, progress: Progress, resumed_at: int, *, stopped: bool) -> Outcome:
    best = load_model(run) if (run / MODEL).exists() else trained
    curve = [Epoch(**line) for line in progress.curve]
    return Outcome(trained=best, curve=curve, stopped=stopped, resumed_at=resumed_at)
