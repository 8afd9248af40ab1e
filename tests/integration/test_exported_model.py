"""A model's networks leave it, are registered, filled and served by the real parts, and all scores as it did before.

And the OOV embedding that it learned becomes the view's, in the EmbArk that runs.
"""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from feast import FeatureStore

from embark.child_process import ChildProcess
from embark.cli import cli
from embark.repo import open_store, write_repo
from embark.servers import LocalServers, free_port
from embark.settings import Settings
from feature_repo.embeddings import Status, oov_zeros
from serving.client import ClientError, EmbArkClient
from tests.training.logs import impressions, write_log
from training.config import load_config
from training.examples import examples
from training.history import historical_embeddings
from training.impressions import Impressions
from training.inputs import inputs
from training.predict import predict
from training.prepare import prepare
from training.ranker import Ranker
from training.saved import load_model
from training.train import train

FEAST = Path(sys.executable).with_name("feast")
CATALOG = 'from encoders.spec import EncoderSpec\n\nKAFKA = "{kafka}"\nENCODERS = []\nSERVICES = {{}}\n'
IMAGE, TEXT = "ctr_image__v1", "ctr_text__v1"
PATIENCE = 240.0


@pytest.mark.servers
@pytest.mark.timeout(600)
def test_a_trained_model_scores_the_same_with_its_networks_in_the_archive(
    servers: LocalServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. a model learned end to end, and each distinct item in one context, scored by it
    write_log(tmp_path / "log", count=200)
    learned_well = "learning_rate = 0.05\naggregate = false\nepochs = 6"
    toml = (tmp_path / "log" / "ctr.toml").read_text().replace("epochs = 3", "")
    (tmp_path / "log" / "ctr.toml").write_text(toml.replace("learning_rate = 0.01", learned_well))
    config = load_config(tmp_path / "log" / "ctr.toml")
    run = tmp_path / "run"
    whole = train(config, prepare(config), run).trained
    shown = pd.DataFrame(impressions(400, seed=7).table.to_pandas()).drop_duplicates("item_id").assign(hour=1)
    # Retina reads the files themselves; the last item's file does not exist
    shown["image_url"] = [f"file://{tmp_path}/log/images/{item}.png" for item in shown["item_id"]]
    asked = Impressions.of(shown)
    expected = predict(whole.model, examples(asked, inputs(asked, config, None), whole.vocabularies)).moments()[0]

    # 2. both networks become encoders, registered by Feast's own command
    repo = tmp_path / "repo"
    write_repo(
        repo,
        project=f"t{uuid.uuid4().hex[:8]}",
        keyspace=servers.keyspace,
        kafka=servers.kafka_bootstrap,
        cassandra_hosts=servers.cassandra_hosts,
        cassandra_port=servers.cassandra_port,
    )
    (repo / "catalog.py").write_text(CATALOG.format(kafka=servers.kafka_bootstrap))
    settings = Settings(
        repo=repo,
        state=tmp_path / "state",
        embark_address=f"127.0.0.1:{free_port()}",
        retina_address=f"127.0.0.1:{free_port()}",
        fetch_roots=[f"file://{tmp_path}/log/images"],
        device="cpu",
    )
    environment = settings.as_environment()

    opened: list[FeatureStore] = []  # by commands in this process, which at their end would be gone with it

    def keep(folder: Path) -> FeatureStore:
        opened.append(open_store(folder))
        return opened[-1]

    monkeypatch.setattr("embark.repo.open_store", keep)

    def embark(*arguments: str | Path) -> Result:
        done = CliRunner(env=environment).invoke(cli, [str(each) for each in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    name = ("--version", "v1", "--to", tmp_path, "--declare")
    embark("export", run, "--component", "image", "--name", "ctr_image", *name)
    embark("export", tmp_path / f"on_{IMAGE}", "--component", "text", "--name", "ctr_text", *name)
    applied = subprocess.run(
        [FEAST, "-c", repo, "apply"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert applied.returncode == 0, applied.stderr

    with ExitStack() as stack:
        stack.callback(lambda: [disconnect(store) for store in opened])
        for part in ("retina", "materialize", "serve"):
            log = tmp_path / f"{part}.txt"
            stack.enter_context(ChildProcess(part, [part], environment, log, folder=tmp_path))
        client = stack.enter_context(EmbArkClient(settings.embark_address))

        def soon(what: Callable[[], bool]) -> None:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    if what():
                        return
                except ClientError:  # EmbArk starts
                    pass
                assert time.monotonic() < deadline, "\n".join(p.read_text()[-2000:] for p in tmp_path.glob("*.txt"))
                time.sleep(0.1)

        # 3. filled by backfills, and ranked with what EmbArk answers
        shown.to_parquet(tmp_path / "items.parquet")
        for view, column in ((IMAGE, "image_url"), (TEXT, "text")):
            embark("backfill", "--view", view, "--from", tmp_path / "items.parquet", "--key-column", column)
        keys = {IMAGE: shown["image_url"].tolist(), TEXT: shown["text"].tolist()}
        settled = {Status.HIT, Status.FAILED}
        soon(lambda: all(settled >= set(client.lookup(view, keys[view]).status) for view in keys))
        composed = load_model(tmp_path / f"on_{TEXT}")
        ranker = stack.enter_context(Ranker(composed, client, budget_seconds=60))
        ranking = ranker.rank({"hour": 1}, shown.to_dict("records"))
        assert not ranking.late
        missing = shown["item_id"] == 15
        assert ranking.status["image"].tolist() == np.where(missing, Status.FAILED, Status.HIT).tolist()
        assert set(ranking.status["text"]) == {Status.HIT}
        assert np.abs(ranking.mean - expected.numpy()).max() < 1e-4
        assert np.ptp(ranking.mean) > 0.01  # they are not all alike, or this would prove little

        # 4. what the model learned for missing pictures is answered by the EmbArk that runs
        def unseen() -> tuple[bytes, int]:
            answer = client.lookup(IMAGE, ["file:///nowhere/unseen.png"])
            assert answer.status[0] != Status.HIT
            return answer.vectors[0].tobytes(), int(answer.embedding_id[0])

        before = unseen()
        assert before == (np.zeros(6, np.float32).tobytes(), oov_zeros(IMAGE, 6).embedding_id)
        learned = whole.model.part("image").oov_embedding.numpy()
        was_set = json.loads(
            embark("oov", "set", "--view", IMAGE, "--checkpoint", tmp_path / f"on_{TEXT}", "--json").stdout
        )
        assert was_set["new"]
        soon(lambda: unseen() == (learned.tobytes(), was_set["embedding_id"]))
        again = json.loads(embark("oov", "set", "--view", IMAGE, "--zeros", "--json").stdout)
        soon(lambda: unseen()[1] == again["embedding_id"])
        told = embark("oov", "show", "--view", IMAGE).stdout
        assert f"embedding id {again['embedding_id']}, set at" in told
        assert f"before: embedding id {was_set['embedding_id']}" in told
        assert f"before: embedding id {before[1]}, zeros, never set" in told

        # 5. history gives the very ones that were served
        hit = int(np.flatnonzero(~missing)[0])
        ids = [before[1], was_set["embedding_id"], again["embedding_id"], int(ranking.embedding_id[IMAGE][hit])]
        log = Impressions.of(
            pd.DataFrame(
                {
                    "event_timestamp": pd.Timestamp("2026-01-01", tz="UTC"),
                    "image_url": ["file:///nowhere/unseen.png"] * 3 + [keys[IMAGE][hit]],
                    f"{IMAGE}__embedding_id": ids,
                }
            )
        )
        read = historical_embeddings(keep(repo), log, [IMAGE], "as_logged")[IMAGE]
        assert [read.of(slice(i, i + 1)).tobytes() for i in range(2)] == [before[0], learned.tobytes()]
        assert read.embedding_id[read.rows].tolist() == ids
        assert read.status.tolist() == [Status.OOV] * 3 + [Status.HIT]


def disconnect(store: FeatureStore) -> None:
    cluster = store._get_provider().online_store._cluster
    if cluster is not None:
        cluster.shutdown()
