"""Feature services that are switched from one view to another, and what a later `apply` makes of them."""

import dataclasses
from pathlib import Path

import pytest
from feast import FeatureService, FeatureStore

from encoders.spec import EncoderSpec, SpecError
from feature_repo.services import SWITCH_TAG, CannotSwitch, Switch, kept, members_of, switched, switched_back
from feature_repo.views import feast_objects

V1 = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=8, network="text_lstm", weights="seeded:0")
V2 = dataclasses.replace(V1, version="v2", dim=4)
V3 = dataclasses.replace(V1, version="v3", dim=2)
OTHER = dataclasses.replace(V1, name="other")
ENCODERS = [V1, V2, V3, OTHER]
OLD, NEW, NEWEST = V1.view, V2.view, V3.view


class Repo:
    """A feature repo whose service `ctr` names two views."""

    def __init__(self, folder: Path) -> None:
        (folder / "feature_store.yaml").write_text(
            "project: shop\nprovider: local\nregistry: registry.db\n"
            "online_store: {type: sqlite, path: online.db}\n"
            "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
            "entity_key_serialization_version: 3\n"
        )
        self.folder = folder
        self.store = FeatureStore(repo_path=str(folder))
        self.apply()

    def apply(self, *members: str, encoders: list[EncoderSpec] = ENCODERS) -> None:
        services = {"ctr": list(members or (OLD, OTHER.view))}
        self.store.apply(list(feast_objects(encoders, services, kafka="broker:9092", repo=self.folder).values()))

    @property
    def service(self) -> FeatureService:
        (service,) = self.store.registry.list_feature_services("shop")
        return service

    def switch(self, old: str = OLD, new: str = NEW) -> None:
        view = self.store.get_feature_view(new)
        self.store.registry.apply_feature_service(switched(self.service, old, view), "shop")

    def switch_back(self, old: str = OLD, new: str = NEW) -> None:
        self.store.registry.apply_feature_service(switched_back(self.service, old, new), "shop")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path)


def test_a_switched_service_names_the_new_view_in_the_place_of_the_old_one(repo: Repo) -> None:
    repo.switch()
    assert members_of(repo.service) == [NEW, OTHER.view]
    first = repo.service.feature_view_projections[0]
    assert [feature.name for feature in first.features] == ["embedding", "embedding_id"]
    assert first.features[0].vector_length == V2.dim


def test_a_switch_keeps_the_alias_and_the_description(repo: Repo) -> None:
    view = repo.store.get_feature_view(OLD)
    projected = view[["embedding"]].with_name("words")
    repo.store.apply(FeatureService(name="ctr", features=[projected], description="the ranker", tags={"team": "ads"}))
    repo.switch()
    (projection,) = repo.service.feature_view_projections
    assert (projection.name, projection.name_alias) == (NEW, "words")
    assert [feature.name for feature in projection.features] == ["embedding"]
    assert (repo.service.description, repo.service.tags["team"]) == ("the ranker", "ads")


def test_what_is_taken_back_is_exactly_what_it_was_through_several_switches(repo: Repo) -> None:
    before = repo.service.to_proto().spec
    repo.switch()
    between = repo.service.to_proto().spec
    repo.switch(NEW, NEWEST)
    assert members_of(repo.service) == [NEWEST, OTHER.view]
    repo.switch_back(NEW, NEWEST)
    assert repo.service.to_proto().spec == between
    repo.switch_back()
    assert repo.service.to_proto().spec == before


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [(NEW, NEWEST, "names text_lstm__v1, other__v1"), (OLD, OTHER.view, "text_lstm__v1 and not other__v1 is expected")],
)
def test_a_service_that_does_not_name_the_old_view_alone_is_not_switched(
    repo: Repo, old: str, new: str, says: str
) -> None:
    with pytest.raises(CannotSwitch, match=says):
        repo.switch(old, new)


def test_another_switch_is_not_taken_back(repo: Repo) -> None:
    with pytest.raises(CannotSwitch, match="was not switched"):
        repo.switch_back()
    repo.switch()
    with pytest.raises(CannotSwitch, match="last switched from text_lstm__v1 to text_lstm__v2"):
        repo.switch_back(NEW, NEWEST)


def test_a_feature_that_the_new_view_has_not_is_told(repo: Repo) -> None:
    view = repo.store.get_feature_view(NEW)
    view.features = [feature for feature in view.features if feature.name != "embedding_id"]
    with pytest.raises(CannotSwitch, match="uses embedding_id, which text_lstm__v2 has not"):
        switched(repo.service, OLD, view)


def test_the_next_apply_keeps_a_switch_and_says_what_to_change(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    repo.switch()
    switched_over = repo.service.to_proto().spec
    repo.apply()
    assert repo.service.to_proto().spec == switched_over
    assert "name text_lstm__v2 in the place of text_lstm__v1 in catalog.py" in capsys.readouterr().out


def test_when_the_declaration_follows_the_switch_can_still_be_taken_back(
    repo: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    before = repo.service.to_proto().spec
    repo.switch()
    repo.apply(NEW, OTHER.view)
    assert "catalog.py" not in capsys.readouterr().out
    assert members_of(repo.service) == [NEW, OTHER.view]
    repo.switch_back()
    assert repo.service.to_proto().spec == before
    repo.apply()
    assert members_of(repo.service) == [OLD, OTHER.view]


def test_a_declaration_that_was_changed_to_something_else_holds(repo: Repo) -> None:
    repo.switch()
    repo.apply(NEWEST, OTHER.view)
    assert members_of(repo.service) == [NEWEST, OTHER.view]
    assert SWITCH_TAG not in repo.service.tags


def test_a_view_that_a_service_was_switched_to_stays_declared(repo: Repo) -> None:
    repo.switch()
    with pytest.raises(SpecError, match=r"text_lstm__v2 is not declared.*--rollback"):
        repo.apply(encoders=[V1, OTHER])


def test_a_service_that_is_new_or_was_never_switched_is_as_declared(repo: Repo) -> None:
    assert kept("ctr", [OLD], None, {OLD}) is None
    assert kept("ctr", [OLD, OTHER.view], repo.service, {OLD}) is None
    assert Switch.of(repo.service) is None
