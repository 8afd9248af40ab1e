import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import MobileNet_V3_Small_Weights, get_model

from encoders.downloads import cache_path, cached_download, digest_of
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec, SpecError
from encoders.weights import WeightsUnavailable, check_unchanged, pin_weights
from tests.encoders.families import image_checkpoint, text_checkpoint
from tests.encoders.pictures import file_of, photographs
from tests.encoders.web import serving, status

ROOT = Path(__file__).parents[2]
SMALL = EncoderSpec(name="small", version="v1", modality="image", dim=576, network="torchvision:mobilenet_v3_small")
TEXT = EncoderSpec(name="t", version="v1", modality="text", dim=32, network="text_lstm", weights="seeded:0")


def nowhere(url: str) -> Path:
    raise WeightsUnavailable("no connection")


class Announced(list[str]):
    """What was said."""

    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A whole network's state dict, with its classifier, as training would save it."""
    torch.manual_seed(5)
    path = tmp_path / "trained.pth"
    torch.save(get_model("mobilenet_v3_small", num_classes=10).state_dict(), path)
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """A torch cache of one's own."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def test_importing_what_look_ups_import_does_not_load_torch() -> None:
    code = (
        "import sys, encoders.client, encoders.weights, encoders.spec, encoders.keys, encoders.matrix\n"
        "sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_names_are_pinned_with_the_digest_of_their_file(weights: str, tmp_path: Path) -> None:
    pinned = pin_weights(replace(SMALL, weights=weights), Announced(), download=lambda url: tmp_path)
    assert pinned.pinned == "MobileNet_V3_Small_Weights.IMAGENET1K_V1#047dcff4"
    assert pinned.pretrained


def test_weights_that_cannot_be_had_fall_back_aloud() -> None:
    said = Announced()
    pinned = pin_weights(replace(SMALL, fallback_weights="seeded:0"), said, download=nowhere)
    assert pinned.pinned == "seeded:0"
    assert not pinned.pretrained
    assert "cannot be downloaded (no connection): pinned to seeded:0, which is NOT pretrained" in said[-1]


def test_weights_that_cannot_be_had_fail_where_no_fallback_is_declared() -> None:
    with pytest.raises(SpecError, match=r"no connection.*fallback_weights='seeded:0'"):
        pin_weights(SMALL, Announced(), download=nowhere)


def test_seeded_weights_pin_themselves() -> None:
    assert pin_weights(replace(SMALL, weights="seeded:7"), Announced(), download=nowhere).pinned == "seeded:7"
    assert pin_weights(TEXT, Announced()).pinned == "seeded:0"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(SMALL, network="torchvision:resnet51"), r"resnet51.*resnet50"),
        (replace(SMALL, network="torchvision:fcn_resnet50"), "fcn_resnet50"),
        (replace(SMALL, dim=1024), "576 pooled features"),
        (replace(SMALL, weights="IMAGENET1K_V9"), r"IMAGENET1K_V1, DEFAULT, seeded:<n>"),
        (replace(SMALL, weights="no/such/file.pth"), "no such file"),
        (replace(TEXT, weights="DEFAULT"), "seeded:<n>"),
    ],
)
def test_a_wrong_declaration_says_what_is_allowed(wrong: EncoderSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        pin_weights(wrong, Announced(), download=nowhere)


def test_a_file_is_pinned_by_its_path_and_digest_and_embeds_what_it_holds(trained: Path) -> None:
    pinned = pin_weights(replace(SMALL, weights=str(trained)), Announced())
    digest = hashlib.sha256(trained.read_bytes()).hexdigest()[:16]
    assert pinned.pinned == f"file:{trained}#{digest}"
    encoder = load_encoder(pinned, "cpu")
    assert encoder.spec == pinned
    torch.manual_seed(5)
    network = get_model("mobilenet_v3_small", num_classes=10).eval()
    network.classifier = torch.nn.Identity()
    prepared = encoder.prepare(file_of(photographs()["cat"]))
    with torch.inference_mode():
        expected = network(prepared[None])
    torch.testing.assert_close(torch.from_numpy(encoder.encode([prepared])), expected)


def test_a_file_that_has_changed_has_another_fingerprint(trained: Path) -> None:
    pinned = pin_weights(replace(SMALL, weights=str(trained)), Announced())
    torch.save(get_model("mobilenet_v3_small").state_dict(), trained)
    assert load_encoder(pinned, "cpu").spec.fingerprint != pinned.fingerprint


def test_a_text_networks_file_comes_back(tmp_path: Path) -> None:
    from encoders.seeded import seed_parameters
    from encoders.text import TextNetwork

    network = TextNetwork(32)
    seed_parameters(network, 0)
    torch.save(network.state_dict(), tmp_path / "text.pth")
    from_file = load_encoder(pin_weights(replace(TEXT, weights=str(tmp_path / "text.pth")), Announced()), "cpu")
    seeded = load_encoder(TEXT.pin("seeded:0"), "cpu")
    title = seeded.prepare(b"a red bicycle")
    assert from_file.encode([title]).tobytes() == seeded.encode([title]).tobytes()


def test_files_that_do_not_fit_are_refused_at_apply(tmp_path: Path) -> None:
    resnet, junk, wrapped, pickled = (tmp_path / name for name in ("resnet.pth", "junk.pth", "wrapped.pth", "code.pth"))
    torch.save(get_model("resnet18").state_dict(), resnet)
    junk.write_bytes(b"no state dict")
    torch.save({"epoch": 3, "state_dict": {}}, wrapped)
    torch.save({"weight": print}, pickled)  # would run code: weights_only refuses it
    for path, message in (
        (resnet, "does not fit"),
        (junk, "no state dict"),
        (wrapped, r"keys begin with \['epoch', 'state_dict'\]"),
        (pickled, "no state dict"),
    ):
        with pytest.raises(SpecError, match=message):
            pin_weights(replace(SMALL, weights=str(path)), Announced())


def test_a_file_that_has_gone_is_unavailable(trained: Path) -> None:
    pinned = pin_weights(replace(SMALL, weights=str(trained)), Announced())
    trained.unlink()
    with pytest.raises(WeightsUnavailable, match="No such file"):
        load_encoder(pinned, "cpu")


def test_torchvisions_own_file_is_loaded_and_its_digest_taken_from_what_was_read(trained: Path) -> None:
    pinned = SMALL.pin("MobileNet_V3_Small_Weights.IMAGENET1K_V1#047dcff4")
    asked: list[str] = []

    def downloaded(url: str) -> Path:
        asked.append(url)
        return trained

    encoder = load_encoder(pinned, "cpu", download=downloaded)
    assert asked == [MobileNet_V3_Small_Weights.DEFAULT.url]
    digest = hashlib.sha256(trained.read_bytes()).hexdigest()[:8]
    assert encoder.spec.pinned == f"MobileNet_V3_Small_Weights.IMAGENET1K_V1#{digest}"


def test_a_download_is_verified_and_kept(hub: Path) -> None:
    content = b"weights" * 100_000
    name = f"/net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    with serving({name: content}) as site:
        path = cached_download(site.url(name))
        assert path == hub / name[1:]
        assert path.read_bytes() == content
        assert cached_download(site.url(name)) == path
        assert len(site.seen) == 1
    assert [p.name for p in hub.iterdir()] == [name[1:]]
    path.write_bytes(b"something else")
    with pytest.raises(WeightsUnavailable, match="delete it"):
        cached_download(site.url(name))


def test_a_file_with_another_digest_is_not_kept(hub: Path) -> None:
    with serving({"/net-01234567.pth": b"<html>please log in</html>", "/gone-01234567.pth": status(404)}) as site:
        for name in ("net", "gone"):
            with pytest.raises(WeightsUnavailable):
                cached_download(site.url(f"/{name}-01234567.pth"))
    assert list(hub.iterdir()) == []
    with pytest.raises(WeightsUnavailable):
        cached_download(site.url("/net-01234567.pth"))  # the server is gone


def test_file_names_carry_their_digest() -> None:
    assert digest_of("https://a.example/models/inception_v3_google-0cc3c7bd.pth") == "0cc3c7bd"
    assert digest_of("https://a.example/models/mnasnet0.5_top1_67.823-3ffadce67e.pth") == "3ffadce67e"
    assert digest_of("https://a.example/models/net.pth") == ""
    assert cache_path("https://a.example/models/net.pth").name == "net.pth"


def test_a_url_is_pinned_with_its_checksum_downloaded_once_and_verified(hub: Path, trained: Path) -> None:
    content = trained.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with serving({"/net.pth": content}) as site:
        url = f"{site.url('/net.pth')}#sha256={digest}"
        pinned = pin_weights(replace(SMALL, weights=url), Announced())
        assert pinned.pinned == url
        encoder = load_encoder(pinned, "cpu")
        assert len(site.seen) == 1
    assert encoder.spec == pinned
    assert pinned.pretrained
    (hub / digest).write_bytes(b"something else")
    with pytest.raises(WeightsUnavailable, match="delete it"):
        load_encoder(pinned, "cpu")


def test_a_url_with_other_bytes_or_none_is_refused_or_falls_back(hub: Path) -> None:
    with serving({"/net.pth": b"other bytes"}) as site:
        for path in ("/net.pth", "/gone.pth"):
            spec = replace(SMALL, weights=f"{site.url(path)}#sha256={'0' * 64}")
            with pytest.raises(SpecError, match="cannot be had"):
                pin_weights(spec, Announced())
            said = Announced()
            assert pin_weights(replace(spec, fallback_weights="seeded:0"), said).pinned == "seeded:0"
            assert "NOT pretrained" in said[-1]
    assert list(hub.iterdir()) == []


def test_a_download_has_a_limit(hub: Path) -> None:
    with serving({"/net-01234567.pth": bytes(5000)}) as site, pytest.raises(WeightsUnavailable, match="4999 bytes"):
        cached_download(site.url("/net-01234567.pth"), max_bytes=4999)
    assert list(hub.iterdir()) == []


def test_a_checkpoint_is_pinned_by_its_digest_and_has_to_be_what_is_declared(tmp_path: Path) -> None:
    for spec, content in (
        (image_checkpoint(tmp_path), file_of(photographs()["cat"])),
        (text_checkpoint(tmp_path), b"a"),
    ):
        path = Path(spec.network.partition(":")[2])
        pinned = pin_weights(spec, Announced())
        assert pinned.pinned == f"file:{path}#{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        assert pinned.pretrained
        encoder = load_encoder(pinned, "cpu")
        assert encoder.encode([encoder.prepare(content)]).shape == (1, spec.dim)
        with pytest.raises(SpecError, match=f"dim=99 is not allowed: .* has {spec.dim}"):
            pin_weights(replace(spec, dim=99), Announced())
        other = "text" if spec.modality == "image" else "image"
        with pytest.raises(SpecError, match=f"modality='{other}' is not allowed"):
            pin_weights(replace(spec, modality=other), Announced())  # type: ignore[arg-type]
        check_unchanged(pinned)
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(SpecError, match=r"has digest .* was pinned: .*version v2"):
            check_unchanged(pinned)
        path.write_bytes(b"no checkpoint")
        with pytest.raises(SpecError, match="no checkpoint"):
            load_encoder(pinned, "cpu")
        path.unlink()
        with pytest.raises(WeightsUnavailable, match="No such file"):
            load_encoder(pinned, "cpu")
        with pytest.raises(SpecError, match="no such file; allowed are the path of a checkpoint"):
            pin_weights(spec, Announced())


def test_a_hub_that_cannot_be_asked_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def refuse(*args: object, **kwargs: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for address in ("hf://timm/resnet18/model.safetensors", "hf://sentence-transformers/tiny"):
        with pytest.raises(WeightsUnavailable, match=f"{address}: no connection$"):
            cached_download(address)
