from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from encoders.conv import ConvArchitecture, ConvNetwork, PicturePreprocessing, picture_input
from encoders.text import TextArchitecture, TextNetwork, TextPreprocessing, text_input
from tests.encoders.pictures import photographs

CONV = ConvArchitecture(channels=(8, 16))
SMALL_TEXT = TextArchitecture(buckets=50, width=8, heads=2)


def saved(folder: Path, **changed: Any) -> Path:
    """A good checkpoint with some of its fields changed; None removes one."""
    path = folder / "text.pt"
    save_checkpoint(path, TextNetwork(4, SMALL_TEXT), TextPreprocessing(tokens=5))
    content = torch.load(path, weights_only=True) | changed
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


def test_an_image_network_computes_the_same_after_the_trip_through_a_file(tmp_path: Path) -> None:
    network = ConvNetwork(12, CONV)
    preprocessing = PicturePreprocessing(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.25))
    save_checkpoint(tmp_path / "image.pt", network, preprocessing)
    back = load_checkpoint(tmp_path / "image.pt")
    assert (back.modality, back.dim, back.preprocessing) == ("image", 12, preprocessing)
    pictures_B3HW = torch.stack([picture_input(p, preprocessing) for p in photographs().values()])
    with torch.inference_mode():
        assert torch.equal(back.network(pictures_B3HW), network.eval()(pictures_B3HW))


def test_a_text_network_computes_the_same_after_the_trip_through_a_file(tmp_path: Path) -> None:
    network = TextNetwork(6, SMALL_TEXT)
    save_checkpoint(tmp_path / "text.pt", network, TextPreprocessing(tokens=5))
    back = load_checkpoint(tmp_path / "text.pt")
    assert back.preprocessing == TextPreprocessing(tokens=5)
    assert isinstance(back.network, TextNetwork)
    assert back.network.architecture == SMALL_TEXT
    index_BT = text_input("one two three four five six", TextPreprocessing(tokens=5), SMALL_TEXT.buckets)[None]
    assert index_BT.shape == (1, 5)
    with torch.inference_mode():
        assert torch.equal(back.network(index_BT, torch.tensor([5])), network.eval()(index_BT, torch.tensor([5])))


def test_preprocessing_keeps_the_middle_square_and_normalises() -> None:
    grey = Image.new("RGB", (40, 20), (128, 128, 128))
    grey.paste((255, 0, 0), (0, 0, 10, 20))  # left of the middle square
    prepared = picture_input(grey, PicturePreprocessing(size=20, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    assert prepared.shape == (3, 20, 20)
    np.testing.assert_allclose(prepared, (128 / 255 - 0.5) / 0.5, atol=1e-6)


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, ConvNetwork(4, CONV), PicturePreprocessing())
    save_checkpoint(path, TextNetwork(5, SMALL_TEXT), TextPreprocessing())
    assert load_checkpoint(path).dim == 5
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_the_preprocessing_of_another_modality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PicturePreprocessing"):
        save_checkpoint(tmp_path / "c.pt", ConvNetwork(4, CONV), TextPreprocessing())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": None}, "no field 'format'"),
        ({"format": 2}, "format=2"),
        ({"state": None}, "no field state"),
        ({"modality": "audio"}, "modality='audio'"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 5}, "do not fit the sizes"),
        ({"architecture": {"buckets": 50, "width": 8, "heads": 3}}, "heads=3"),
        ({"architecture": {"layers": 3}}, "layers"),
        ({"preprocessing": {"tokens": 0}}, "tokens=0"),
        ({"preprocessing": "default"}, "preprocessing"),
        ({"state": {}}, "do not fit the sizes"),
    ],
)
def test_a_file_that_does_not_hold_together_says_in_what(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved(tmp_path, **changed))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 1, "state": print}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "code.pt")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ConvArchitecture, {"channels": ()}),
        (ConvArchitecture, {"channels": (12,)}),
        (PicturePreprocessing, {"size": 7}),
        (PicturePreprocessing, {"mean": (0.5, 0.5)}),
        (PicturePreprocessing, {"std": (0.5, 0.0, 0.5)}),
        (TextArchitecture, {"width": 0}),
        (TextPreprocessing, {"tokens": 10_000}),
    ],
)
def test_sizes_that_are_not_allowed_are_refused_by_name(kind: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))}="):
        kind(**values)
