"""`embark reembed`, `invalidate` and `migrate`: what can be asked of them, and what they tell."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from feast import FeatureStore

from embark.cli import cli
from embark.found_keys import found_keys
from embark.invalidate import show
from embark.migrate import Told
from embark.settings import Settings
from encoders.spec import EncoderSpec
from feature_repo.views import encoder_specs, feast_objects
from materializer.backfill import Refusal
from materializer.coverage import Coverage
from materializer.invalidation import Removed

TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=8, network="text_lstm", weights="seeded:0")
IMAGE = EncoderSpec(
    name="pic", version="v1", modality="image", dim=576, network="torchvision:mobilenet_v3_small", weights="seeded:0"
)
SERVICES = {"ctr": [TEXT.view], "pictures": [IMAGE.view]}


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repo")
    (folder / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    objects = feast_objects([TEXT, IMAGE], SERVICES, kafka="127.0.0.1:1", repo=folder)
    FeatureStore(repo_path=str(folder)).apply(list(objects.values()))
    return folder


def invoke(repo: Path, *arguments: str) -> Result:
    settings = Settings(repo=repo, state=repo / "state")
    return CliRunner(env=settings.as_environment()).invoke(cli, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("reembed", "--view", TEXT.view), "Give --from FILE, or --all"),
        (("reembed", "--view", TEXT.view, "--all", "--from", "-"), "Give --from FILE, or --all"),
        (("reembed", "--view", TEXT.view, "--all", "--key-column", "k"), "is for files"),
        (("reembed", "--view", TEXT.view, "--from", "-", "--restart"), "for files and --all"),
        (("reembed", "--view", "nope__v1", "--all"), "unknown view 'nope__v1'"),
        (("invalidate", "--view", TEXT.view), "Name KEYs, or give --from FILE"),
        (("invalidate", "--view", TEXT.view, "a", "--from", "-"), "Name KEYs, or give --from FILE"),
        (("invalidate", "--view", TEXT.view, "a", "--key-column", "k"), "--key-column is for files"),
        (("invalidate", "--view", "nope__v1", "a"), "known are: pic__v1, text_lstm__v1"),
        (("migrate", TEXT.view, "nope__v1"), "unknown view 'nope__v1'"),
        (("migrate", TEXT.view, IMAGE.view), "text_lstm__v1 is of texts, pic__v1 of images"),
        (("migrate", TEXT.view, TEXT.view), "another view"),
        (("migrate", TEXT.view, IMAGE.view, "--key-column", "k"), "--key-column is of --traffic"),
        (("migrate", TEXT.view, IMAGE.view, "--rollback"), "--rollback takes a --service"),
        (("migrate", TEXT.view, IMAGE.view, "--rollback", "--service", "nope"), "registered are: ctr, pictures"),
        (("migrate", TEXT.view, IMAGE.view, "--threshold", "99"), "--threshold"),
    ],
)
def test_what_cannot_be_is_a_wrong_argument(repo: Path, arguments: tuple[str, ...], message: str) -> None:
    done = invoke(repo, *arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())


def test_what_was_never_switched_is_not_taken_back(repo: Path) -> None:
    done = invoke(repo, "migrate", TEXT.view, IMAGE.view, "--rollback", "--service", "ctr")
    assert done.exit_code == 1
    assert "error: service 'ctr' was not switched" in done.stderr


def test_keys_that_were_found_are_kept_until_they_are_found_anew(repo: Path, tmp_path: Path) -> None:
    store = FeatureStore(repo_path=str(repo))
    spec = encoder_specs(store)[TEXT.view]
    first = found_keys(store, spec, tmp_path, anew=False)
    first.write_bytes(b"as it was")
    assert found_keys(store, spec, tmp_path, anew=False).read_bytes() == b"as it was"
    assert found_keys(store, spec, tmp_path, anew=False, use="another") != first
    assert found_keys(store, spec, tmp_path, anew=True).read_bytes() != b"as it was"


def test_removed_keys_are_told_with_those_that_were_refused(capsys: pytest.CaptureFixture[str]) -> None:
    done = Removed(
        removed=3, before=1, absent=2, refused=2, examples=[Refusal(4, "\x1b[2J", "no \x1b key")], position=8
    )
    show(TEXT.view, done, as_json=False)
    told = capsys.readouterr().out
    assert told.startswith("3 removed, 1 removed before, 2 had no embedding, 2 refused\n")
    assert "row 4" in told
    assert "and 1 more" in told
    assert "\x1b" not in told
    show(TEXT.view, done, as_json=True)
    fields = json.loads(capsys.readouterr().out)
    assert (fields["view"], fields["removed"], fields["examples"][0]["row"]) == (TEXT.view, 3, 4)


@pytest.mark.parametrize(
    ("covered", "service", "switched", "says"),
    [
        (80, None, False, "80.00% (each key counts the same)"),
        (80, None, False, "not enough to switch: 99.00% is the threshold"),
        (100, None, False, "name a feature service with --service"),
        (100, "ctr", True, "service ctr names b__v1; name it there in catalog.py too, instead of a__v1"),
    ],
)
def test_a_migration_says_how_far_it_is_and_what_to_do(
    covered: int, service: str | None, switched: bool, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(old="a__v1", new="b__v1", service=service, threshold=0.99, weighted_by="keys", switched=switched)
    told.coverage = Coverage(keys=10, covered=8, failed=0, weight=100, covered_weight=covered, failed_weight=0)
    told.show(as_json=False)
    assert says in capsys.readouterr().out
    told.show(as_json=True)
    fields = json.loads(capsys.readouterr().out)
    assert (fields["share"], fields["enough"]) == (covered / 100, covered == 100)


def test_a_migration_of_which_too_much_failed_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(old="a__v1", new="b__v1", service=None, threshold=0.99, weighted_by="keys")
    told.coverage = Coverage(keys=10, covered=8, failed=2, weight=10, covered_weight=8, failed_weight=2)
    told.show(as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "no more than 80.00% can be reached. See why: embark dead-letters list --view b__v1" in shown
    told.show(as_json=True)
    assert json.loads(capsys.readouterr().out)["reachable"] == 0.8
