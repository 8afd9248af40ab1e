import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from encoders.downloads import WeightsUnavailable
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec, SpecError
from encoders.timm_image import check_dim, hub_address
from encoders.weights import pin_weights
from tests.encoders.families import TIMM, loaded, silent
from tests.encoders.pictures import file_of, photographs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The file of timm's own weights, as its hub has it; random ones, of course."""
    from safetensors.torch import save_file

    path = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / COMMIT / "model.safetensors"
    path.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        save_file(timm.create_model("test_vit").state_dict(), path)
    return path


def spec_of(model: str, dim: int) -> EncoderSpec:
    return replace(TIMM, network=f"timm:{model}", dim=dim)


@pytest.mark.parametrize(
    ("model", "dim"),
    {"resnet18": 512, "vit_tiny_patch16_224": 192, "convnext_atto": 320, "test_efficientnet": 256}.items(),
)
def test_networks_are_cut_where_timm_cuts_them(model: str, dim: int) -> None:
    check_dim(spec_of(model, dim))
    with pytest.raises(SpecError, match=f"dim=7 is not allowed: timm:{model} has {dim} features"):
        check_dim(spec_of(model, 7))


def test_preprocessing_is_that_of_timm() -> None:
    transform = create_transform(**resolve_model_data_config(timm.create_model("test_vit")), is_training=False)
    encoder = loaded(TIMM)
    for picture in photographs().values():
        assert torch.equal(encoder.prepare(file_of(picture, "PNG")), transform(picture))
    assert encoder.prepare(file_of(Image.new("RGB", (30_000, 2)), "PNG")).shape == (3, 160, 160)


def test_weights_of_the_hub_are_pinned_with_their_commit_and_embed_what_timm_embeds(trained: Path) -> None:
    asked: list[str] = []

    def downloaded(address: str) -> Path:
        asked.append(address)
        return trained

    pinned = pin_weights(replace(TIMM, weights="DEFAULT"), silent, download=downloaded)
    address, _, digest = pinned.pinned.partition("#")
    assert asked == ["hf://timm/test_vit.r160_in1k/model.safetensors"]
    assert address == f"hf://timm/test_vit.r160_in1k@{COMMIT}/model.safetensors"
    assert len(digest) == 16
    assert pinned.pretrained
    encoder = load_encoder(pinned, "cpu", download=downloaded)
    assert asked[-1] == address
    assert encoder.spec == pinned
    with torch.random.fork_rng():
        torch.manual_seed(3)
        reference = timm.create_model("test_vit").eval()
    reference.reset_classifier(0)
    prepared = encoder.prepare(file_of(photographs()["cat"]))
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(encoder.encode([prepared])), reference(prepared[None]))


def test_a_file_of_the_hub_that_lacks_a_parameter_is_refused(trained: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(trained)
    del state["blocks.0.norm1.weight"]
    save_file(state, trained)
    with pytest.raises(SpecError, match=r"(?s)does not fit timm:test_vit.*blocks\.0\.norm1\.weight"):
        pin_weights(replace(TIMM, weights="DEFAULT"), silent, download=lambda address: trained)


def test_a_state_dict_of_another_task_is_taken_without_its_classifier(tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    pinned = pin_weights(replace(TIMM, weights=str(path)), silent)
    assert pinned.pinned.startswith(f"file:{path}#")
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(SpecError, match="does not fit timm:test_vit"):
        pin_weights(replace(TIMM, weights=str(path)), silent)


def test_a_hub_that_cannot_be_reached_falls_back_aloud() -> None:
    def nowhere(address: str) -> Path:
        raise WeightsUnavailable("no connection")

    said: list[str] = []
    spec = replace(TIMM, weights="DEFAULT", fallback_weights="seeded:2")
    assert pin_weights(spec, said.append, download=nowhere).pinned == "seeded:2"
    assert "NOT pretrained" in said[-1]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet19", "like resnet18"),
        ("resnet18.no_such_tag", "no_such_tag"),
        ("qqqqqqqqqq", "none like it"),
    ],
)
def test_a_model_that_timm_does_not_have_is_refused_with_those_like_it(model: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        hub_address(spec_of(model, 64))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match="uv sync --extra timm"):
        pin_weights(TIMM, silent)
    with pytest.raises(SpecError, match="uv sync --extra timm"):
        load_encoder(TIMM.pin("seeded:0"), "cpu")
