"""Training runs: what they learn, that they resume exactly, and what they refuse."""

import multiprocessing
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.logs import impressions, write_log
from training.config import Config, parse
from training.examples import OOV_ROW, examples
from training.inputs import inputs
from training.predict import nll, predict
from training.prepare import held_out, prepare
from training.saved import CHECKPOINT, MODEL, ModelError, load_model, read_whole
from training.threads import one_thread
from training.train import Material, Unwatched, train


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return write_log(tmp_path_factory.mktemp("log"))


def with_training(config: Config, **changed: object) -> Config:
    values = config.model_dump()
    return parse({**values, "training": values["training"] | changed})


def weights(run: Path, name: str = CHECKPOINT) -> dict[str, torch.Tensor]:
    content = read_whole(run / name)
    found: dict[str, torch.Tensor] = content["model" if name == CHECKPOINT else "state"]
    return found


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_a_run_learns_keeps_the_best_model_and_writes_curves(config: Config, tmp_path: Path) -> None:
    config = with_training(config, epochs=8, learning_rate=0.02)
    material = prepare(config)
    outcome = train(config, material, tmp_path)
    assert not outcome.stopped
    losses = [epoch.valid_nll for epoch in outcome.curve]
    assert min(losses) < losses[0]
    _, held = held_out(config.data.test, outcome.trained)
    mixture = predict(outcome.trained.model, held)
    assert held.true_ctr_N is not None
    assert np.corrcoef(mixture.moments()[0].numpy(), held.true_ctr_N)[0, 1] > 0.5
    best = load_model(tmp_path)
    assert nll(predict(best.model, material.valid), material.valid) == pytest.approx(min(losses), abs=1e-6)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_pictures_and_texts_that_cannot_be_had_are_oov(config: Config) -> None:
    shown = impressions(300)
    parts = inputs(shown, config, None)
    item = np.array(shown.values("item_id"))
    assert ((parts["image"].row_N == OOV_ROW) == (item == 15)).all()
    assert (parts["text"].row_N != OOV_ROW).all()
    assert len(np.unique(parts["text"].row_N)) == 4


def test_equal_impressions_become_one_example_and_nothing_is_lost(config: Config) -> None:
    shown = impressions(500)
    material = prepare(config)
    parts = inputs(shown, config, None)
    cells = examples(shown, parts, material.vocabularies)
    single = examples(shown, parts, material.vocabularies, aggregate=False)
    assert len(single) == 500
    assert len(cells) == len({(i, h) for i, h in zip(shown.values("item_id"), shown.values("hour"), strict=True)})
    assert (cells.impressions_N.sum(), cells.clicks_N.sum()) == (500, shown.clicked.sum())


def test_all_settings_that_change_the_computation_train(config: Config, tmp_path: Path) -> None:
    config = with_training(
        config.changed(noise="gaussian", dropout=0.2), epochs=1, precision="bfloat16", aggregate=False
    )
    outcome = train(config, prepare(config), tmp_path)
    assert np.isfinite(outcome.curve[0].train_nll)
    alone = with_training(config.changed(image="none", text="none", item=(), noise="none"), epochs=1)
    assert np.isfinite(train(alone, prepare(alone), tmp_path / "alone").curve[0].valid_nll)


def test_training_stops_when_validation_gets_no_better(config: Config, tmp_path: Path) -> None:
    config = with_training(config, epochs=50, patience=1, learning_rate=1.0)
    outcome = train(config, prepare(config), tmp_path)
    assert len(outcome.curve) < 50
    assert outcome.curve[-1].valid_nll >= min(epoch.valid_nll for epoch in outcome.curve)


def test_a_run_that_is_stopped_in_an_epoch_ends_with_equal_weights(config: Config, tmp_path: Path) -> None:
    config = with_training(config.changed(dropout=0.3), batch_size=8)
    material = prepare(config)
    whole = train(config, material, tmp_path / "whole")
    asked = iter(range(1_000_000))
    first = train(config, material, tmp_path / "parts", should_stop=lambda: next(asked) == 9)
    assert first.stopped
    second = train(config, material, tmp_path / "parts")
    assert (second.stopped, second.resumed_at) == (False, 9)
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [e.train_nll for e in whole.curve] == [e.train_nll for e in second.curve]
    again = train(config, material, tmp_path / "parts")  # a run that is done is not done again
    assert again.curve == second.curve


@dataclass
class Told(Unwatched):
    """Tells each batch: its epoch, and how many of it are done. Soon after `line` it waits to be killed."""

    to: Connection
    line: str
    left: int = 3

    def batch(self, epoch: int, done: int, of: int, loss: float) -> None:
        told = f"{epoch} {done}"
        self.to.send(told)
        if told == self.line or self.left < 3:
            self.left -= 1
        if not self.left:
            signal.pause()


def train_telling(config: Config, material: Material, run: Path, line: str, to: Connection) -> None:
    torch.set_num_threads(1)  # as torch's own data loaders do
    train(config, material, run, watch=Told(to, line))


def train_until_killed(config: Config, material: Material, run: Path, line: str) -> None:
    """Trains in a process of its own, which is killed when it tells that line."""
    # Not forked, though to import torch takes seconds: torch refuses to train in the fork of some processes that have.
    spawn = multiprocessing.get_context("spawn")
    told, to = spawn.Pipe(duplex=False)
    child = spawn.Process(target=train_telling, args=(config, material, run, line, to))
    child.start()
    to.close()
    with told, suppress(EOFError):
        while told.recv() != line:
            pass
        child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_a_run_that_is_killed_ends_with_equal_weights(config: Config, tmp_path: Path) -> None:
    slow = with_training(config.changed(dropout=0.2), batch_size=8)
    run = tmp_path / "killed"
    # in the middle of the second epoch, while checkpoints are being written
    train_until_killed(with_training(slow, checkpoint_seconds=0), prepare(slow), run, "2 4")
    material = prepare(slow)
    with one_thread():
        resumed = train(slow, material, run)
        assert resumed.resumed_at > 0
        train(slow, material, tmp_path / "whole")
    assert_equal(weights(tmp_path / "whole"), weights(run))
    assert_equal(weights(tmp_path / "whole", MODEL), weights(run, MODEL))


def test_a_folder_of_another_run_is_refused(config: Config, tmp_path: Path) -> None:
    config = with_training(config, epochs=1)
    material = prepare(config)
    train(config, material, tmp_path)
    with pytest.raises(ModelError, match=r"holds a run of another config \(model.width differ\)"):
        train(config.changed(width=8), material, tmp_path)
    assert len(train(with_training(config, epochs=2), material, tmp_path).curve) == 2  # more of the same goes on


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.pt: No such file or directory: `embark train` writes it"):
        load_model(tmp_path)
    (tmp_path / MODEL).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is no model of `embark train`"):
        load_model(tmp_path)
