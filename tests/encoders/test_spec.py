import dataclasses

import pytest

from encoders.spec import EncoderSpec, SpecError

SPEC = EncoderSpec(
    name="inception_v3", version="v1", modality="image", dim=2048, network="torchvision:inception_v3", pinned="W#abc"
)


def test_the_declaration_survives_the_trip_through_tags() -> None:
    spec = dataclasses.replace(SPEC, drop_query_params=("sig", "expires"))
    assert EncoderSpec.from_tags(spec.to_tags()) == spec


def test_tags_of_an_ordinary_view_hold_no_encoder() -> None:
    assert EncoderSpec.from_tags({"team": "ads"}) is None


def test_an_encoder_that_was_never_applied_has_no_fingerprint() -> None:
    with pytest.raises(SpecError, match="feast apply"):
        _ = dataclasses.replace(SPEC, pinned="").fingerprint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Inception"),
        ("name", "a__b"),
        ("name", "naïve"),
        ("version", "1"),
        ("version", "latest"),
        ("modality", "audio"),
        ("dim", 0),
        ("dim", 8193),
        ("dim", 2048.0),
        ("dim", True),
        ("network", "text_lstm"),
        ("network", "inception_v3"),
        ("network", "torchvision:"),
        ("network", "sentence-transformers:all-MiniLM-L6-v2"),
        ("network", "python:shop.networks"),
        ("network", "python:shop/networks:build"),
        ("network", "checkpoint:https://a.example/c.pt"),
        ("weights", "https://a.example/net.pth"),
        ("weights", "https://a.example/net.pth#sha256=0cc3c7bd"),
        ("weights", ""),
        ("fallback_weights", "DEFAULT"),
        ("fallback_weights", "seeded:x"),
        ("preprocessing", "tokens:64"),
        ("dtype", "float16"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SpecError, match=f"{field}={value!r}"):
        dataclasses.replace(SPEC, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [("pinned", "W#abd"), ("dim", 2047), ("dtype", "bfloat16"), ("network", "torchvision:resnet50")],
)
def test_the_fingerprint_covers_all_that_an_embedding_depends_on(field: str, value: object) -> None:
    assert dataclasses.replace(SPEC, **{field: value}).fingerprint != SPEC.fingerprint  # type: ignore[arg-type]


def test_what_no_embedding_depends_on_may_change_under_a_version() -> None:
    changed = dataclasses.replace(SPEC, pinned="", fallback_weights="seeded:1", drop_query_params=("sig",))
    assert changed.declares_the_same_as(SPEC)
    assert not dataclasses.replace(SPEC, weights="IMAGENET1K_V1").declares_the_same_as(SPEC)


def test_seeded_weights_are_not_called_pretrained() -> None:
    assert SPEC.pretrained
    assert not dataclasses.replace(SPEC, pinned="seeded:0").pretrained


def test_a_wrong_network_says_what_its_modality_allows() -> None:
    with pytest.raises(SpecError, match=r"for image torchvision:<model>, timm:<model>, checkpoint:<file>, python:"):
        dataclasses.replace(SPEC, network="keras:resnet50")


@pytest.mark.parametrize(
    ("modality", "network", "family"),
    [
        ("image", "timm:resnet18.a1_in1k", "timm"),
        ("text", "sentence-transformers:BAAI/bge-small-en-v1.5", "sentence-transformers"),
        ("image", "checkpoint:models/towers v2.pt", "checkpoint"),
        ("text", f"checkpoint:https://a.example/c.pt#sha256={'0' * 64}", "checkpoint"),
        ("text", "python:shop.networks:build", "python"),
    ],
)
def test_networks_of_every_family_can_be_declared(modality: str, network: str, family: str) -> None:
    assert dataclasses.replace(SPEC, modality=modality, network=network).family == family  # type: ignore[arg-type]


def test_a_checkpoint_holds_its_own_weights_and_preprocessing() -> None:
    for changed in ({"weights": "seeded:0"}, {"preprocessing": "tokens:5"}):
        with pytest.raises(SpecError, match="is not allowed"):
            dataclasses.replace(SPEC, modality="text", network="checkpoint:c.pt", **changed)  # type: ignore[arg-type]


def test_a_teams_own_network_with_seeded_weights_is_not_called_pretrained() -> None:
    assert not dataclasses.replace(SPEC, pinned="seeded:0;module:shop#0123").pretrained
