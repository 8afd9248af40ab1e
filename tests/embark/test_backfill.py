"""`embark backfill`, as far as it needs no server."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from feast import FeatureStore
from kafka.errors import KafkaTimeoutError

from embark.backfill import KEY_COLUMN, Run, Source, opened, send
from embark.cli import cli
from encoders.spec import EncoderSpec
from feature_repo.views import feast_objects
from materializer import backfill
from materializer.archive import MemoryArchive
from materializer.backfill import BackfillStopped
from materializer.backfill_input import InputError
from materializer.messages import EmbedRequest, Topics
from tests.materializer.fakes import FakeClock, FakeKafka, FakeProducer

TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0")
TOPICS = Topics(live="shop.requests")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A registry with one encoder, and no server."""
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(folder))
    store.apply(list(feast_objects([TEXT], {}, kafka="broker:9092", repo=folder).values()))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.csv"
    path.write_text("key\n" + "".join(f"k{number}\n" for number in range(6)))
    return path


def invoke(repo: Path, *arguments: str) -> Result:
    return CliRunner(env={"EMBARK_REPO": str(repo), "EMBARK_STATE": str(repo / "state")}).invoke(
        cli, ["backfill", *arguments]
    )


class Office:
    """What a run sends to, and one file that it reads."""

    def __init__(self, file: Path, states: Path) -> None:
        self.file, self.states = file, states
        self.kafka = FakeKafka(FakeClock())
        self.producer = FakeProducer(self.kafka)
        self.archive = MemoryArchive()
        self.stop = threading.Event()

    def run(self, *, dry: bool = False, restart: bool = False, producer: FakeProducer | None = None) -> Run:
        self.last = Run(view=TEXT.view, topic=TOPICS.bulk, dry=dry, resumed_after=0)
        with opened(
            self.file,
            key_column=KEY_COLUMN,
            time_column=None,
            states=self.states,
            view=TEXT.view,
            servers="broker:9092",
            topics=TOPICS,
            restart=restart,
            stop=self.stop,
        ) as source:
            self.source: Source = source
            self.last.resumed_after = source.skipped
            send(
                self.last,
                source,
                spec=TEXT,
                topics=TOPICS,
                producer=None if dry else producer or self.producer,
                archive=self.archive,
                stop=self.stop,
                rate=None,
            )
        return self.last

    @property
    def keys(self) -> list[str]:
        return [EmbedRequest.decode(record.value).key for record in self.kafka.records(TOPICS.bulk)]

    def embed(self, *keys: str) -> None:
        self.archive.rows.update({(TEXT.view, key): (0, np.zeros(256, dtype=np.float32)) for key in keys})


class StoppingProducer(FakeProducer):
    """A signal comes while the third request is sent."""

    def __init__(self, office: Office) -> None:
        super().__init__(office.kafka)
        self.office, self.count = office, 0

    def send(self, *message: object) -> object:  # type: ignore[override]
        self.count += 1
        if self.count == 3:
            self.office.stop.set()
        return super().send(*message)  # type: ignore[arg-type]


@pytest.fixture
def office(file: Path, tmp_path: Path) -> Office:
    return Office(file, tmp_path / "states")


def interrupt(office: Office) -> Run:
    run = office.run(producer=StoppingProducer(office))
    office.stop.clear()
    return run


def test_a_stopped_run_of_a_file_goes_on_where_it_stood(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = interrupt(office)
    assert (stopped.stopped, stopped.complete, office.keys) == (True, False, ["k0", "k1", "k2"])
    done = office.run()
    assert office.keys == [f"k{number}" for number in range(6)]
    assert (done.resumed_after, done.stopped, done.complete) == (3, False, True)
    assert done.tally is not None
    assert done.tally.read == 3
    told = capsys.readouterr().err
    assert "stopped after row 3: the same command goes on from there\n" in told
    assert "goes on after row 3, where an earlier run stopped" in told


def test_a_file_that_was_done_is_gone_over_again_for_what_is_not_archived(office: Office) -> None:
    office.run()
    office.embed("k0", "k1", "k2", "k3", "k4")
    again = office.run()
    assert again.tally is not None
    assert (again.resumed_after, again.tally.archived, again.tally.sent) == (0, 5, 1)
    assert list(office.states.iterdir()) == []


def test_a_restart_begins_at_the_first_row(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt(office)
    office.run(restart=True)
    assert office.keys == ["k0", "k1", "k2", *(f"k{number}" for number in range(6))]
    assert "where an earlier run stopped" not in capsys.readouterr().err


def test_a_dry_run_counts_what_is_left_and_forgets_nothing(office: Office) -> None:
    interrupt(office)
    dry = office.run(dry=True)
    assert dry.tally is not None
    assert (dry.tally.read, dry.tally.sent, office.keys) == (3, 3, ["k0", "k1", "k2"])
    assert office.run().resumed_after == 3


def test_a_broker_that_fails_leaves_a_tally_and_the_place(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "MAX_UNACKNOWLEDGED", 4)
    office.producer.errors.append(KafkaTimeoutError("too late"))
    with pytest.raises(BackfillStopped):
        office.run()
    assert office.last.tally is not None
    assert (office.last.tally.sent, office.last.complete) == (3, False)
    assert office.run().resumed_after == 0


def test_a_folder_for_the_place_that_cannot_be_made_is_told(office: Office) -> None:
    office.states.write_text("in the way")
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        office.run()


def test_the_summary_has_counts_examples_and_escapes(
    office: Office, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("key\nk0\nk0\n\x1b[2J\0[/]\n" + '" "\n' * 6)
    run = office.run()
    run.show(as_json=False)
    shown = capsys.readouterr()
    assert "9 read: 0 archived before, 1 duplicates, 7 refused, 1 sent to shop.requests.bulk\n" in shown.out
    assert r"row 3: '\x1b[2J\x00[/]': the key holds a NUL" in shown.out
    assert "and 2 more" in shown.out
    assert "\x1b" not in shown.out
    run.show(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in ("view", "topic", "dry_run", "resumed_after", "complete")} == {
        "view": TEXT.view,
        "topic": TOPICS.bulk,
        "dry_run": False,
        "resumed_after": 0,
        "complete": True,
    }
    assert [told[name] for name in ("read", "sent", "archived", "duplicates", "refused")] == [9, 1, 0, 1, 7]
    assert told["examples"][0] == {"row": 3, "key": "\x1b[2J\0[/]", "why": "the key holds a NUL character"}


def test_an_unknown_view_is_answered_with_those_that_are_known(repo: Path, file: Path) -> None:
    done = invoke(repo, "--view", "nope__v1", "--from", str(file))
    assert done.exit_code == 2
    assert "unknown view 'nope__v1'; known are: text_lstm__v1" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--from", "nothing.csv"), "nothing.csv"),
        (("--from", "-", "--key-column", "k"), "are for files"),
        (("--from", "-", "--restart"), "are for files"),
        (("--from", "-", "--rate", "0"), "--rate"),
        ((), "--from"),
    ],
)
def test_what_cannot_be_is_a_wrong_argument(repo: Path, options: tuple[str, ...], message: str) -> None:
    done = invoke(repo, "--view", TEXT.view, *options)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "text\na\n", (), "'key' is missing; the columns are: 'text'"),
        ("a.csv", "key\na\n", ("--time-column", "t"), "'t' is missing"),
        ("a.txt", "a\n", (), "is neither .parquet"),
        ("a.parquet", "a\n", (), "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_as_asked_is_one_line_before_any_server_is_asked(
    repo: Path, tmp_path: Path, name: str, content: str, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / name).write_text(content)
    done = invoke(repo, "--view", TEXT.view, "--from", str(tmp_path / name), *options)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
