import dataclasses
from pathlib import Path

import pytest
from feast import FeatureStore

from encoders.spec import EncoderSpec, SpecError
from feature_repo.views import allowing, encoder_specs, feast_objects, request_topic
from tests.encoders.families import OWN, own_module, text_checkpoint

IMAGE = EncoderSpec(
    name="mobilenet_v3_small",
    version="v1",
    modality="image",
    dim=576,
    network="torchvision:mobilenet_v3_small",
    weights="seeded:0",
)
TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    return tmp_path


def apply(repo: Path, encoders: list[EncoderSpec], services: dict[str, list[str]] | None = None) -> FeatureStore:
    store = FeatureStore(repo_path=str(repo))
    store.apply(list(feast_objects(encoders, services or {}, kafka="broker:9092", repo=repo).values()))
    return store


def test_what_was_declared_is_read_back_from_the_registry(repo: Path) -> None:
    store = apply(repo, [TEXT, IMAGE])
    assert list(encoder_specs(store)) == ["mobilenet_v3_small__v1", "text_lstm__v1"]
    assert encoder_specs(store)["text_lstm__v1"] == TEXT.pin("seeded:0")
    assert request_topic(store) == ("broker:9092", "shop.requests")


def test_a_service_serves_the_embeddings_of_its_views(repo: Path) -> None:
    store = apply(repo, [TEXT, IMAGE], {"ctr": ["text_lstm__v1", "mobilenet_v3_small__v1"]})
    projections = store.get_feature_service("ctr").feature_view_projections
    assert {p.name: [f.name for f in p.features] for p in projections} == {
        "text_lstm__v1": ["embedding", "embedding_id"],
        "mobilenet_v3_small__v1": ["embedding", "embedding_id"],
    }


def test_another_declaration_under_a_registered_version_is_refused(repo: Path) -> None:
    apply(repo, [TEXT])
    with pytest.raises(SpecError, match=r"text_lstm__v1.*version v2"):
        apply(repo, [dataclasses.replace(TEXT, weights="seeded:1")])


def test_what_a_version_stands_for_was_settled_when_it_was_first_applied(repo: Path) -> None:
    apply(repo, [TEXT])
    again = apply(repo, [dataclasses.replace(TEXT, fallback_weights="seeded:9"), IMAGE])
    assert encoder_specs(again)["text_lstm__v1"].pinned == "seeded:0"


def test_two_versions_live_side_by_side(repo: Path) -> None:
    store = apply(repo, [TEXT, dataclasses.replace(TEXT, version="v2", dim=128)])
    assert {s.dim for s in encoder_specs(store).values()} == {256, 128}


def test_an_encoder_declared_twice_is_refused(repo: Path) -> None:
    with pytest.raises(SpecError, match="twice"):
        apply(repo, [TEXT, TEXT])


def test_a_service_of_an_unknown_view_is_refused_with_those_declared(repo: Path) -> None:
    with pytest.raises(SpecError, match=r"inception_v3__v1; declared are text_lstm__v1"):
        apply(repo, [TEXT], {"ctr": ["inception_v3__v1"]})


def test_a_file_that_has_changed_under_a_registered_version_is_refused(repo: Path) -> None:
    spec = text_checkpoint(repo)
    apply(repo, [spec])
    apply(repo, [spec])
    path = Path(spec.network.partition(":")[2])
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(SpecError, match=r"has digest .* was pinned.*version v2"):
        apply(repo, [spec])


def test_a_teams_own_network_is_registered_where_its_module_is_allowed(repo: Path, tmp_path: Path) -> None:
    with own_module(tmp_path) as module:
        with pytest.raises(SpecError, match="EMBARK_ALLOWED_MODULES"):
            apply(repo, [OWN])
        with allowing(["team_networks"]):
            store = apply(repo, [OWN])
        registered = encoder_specs(store)[OWN.view]
        assert registered.pinned.startswith("seeded:3;module:team_networks#")
        apply(repo, [OWN])  # once registered, nothing of it is run
        module.write_text(module.read_text() + "\n")
        with pytest.raises(SpecError, match="version v2"):
            apply(repo, [OWN])
