import hashlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.models import Inception_V3_Weights, MobileNet_V3_Small_Weights, get_model, get_model_weights

from encoders.encoder import DecodeError, EncodeError, Encoder
from encoders.folding import fold
from encoders.image import embedding_dim, pooled_network
from encoders.loading import load_encoder
from encoders.seeded import seed_parameters
from encoders.spec import EncoderSpec
from tests.encoders.pictures import file_of, photographs

SMALL = EncoderSpec(
    name="small", version="v1", modality="image", dim=576, network="torchvision:mobilenet_v3_small", pinned="seeded:0"
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small() -> Encoder:
    return load_encoder(SMALL, "cpu")


def embed(encoder: Encoder, *contents: bytes) -> NDArray[np.float32]:
    return encoder.encode([encoder.prepare(content) for content in contents])


def cosines_after_centring(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of all pairs, (pairs,)."""
    centred = vectors - vectors.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    pairs: NDArray[np.float32] = (centred @ centred.T)[np.triu_indices(len(vectors), 1)]
    return pairs


@pytest.mark.parametrize(
    ("network", "dim"),
    {
        "alexnet": 4096,
        "convnext_tiny": 768,
        "densenet121": 1024,
        "efficientnet_b0": 1280,
        "efficientnet_v2_s": 1280,
        "googlenet": 1024,
        "inception_v3": 2048,
        "maxvit_t": 512,
        "mnasnet1_0": 1280,
        "mobilenet_v2": 1280,
        "mobilenet_v3_large": 960,
        "mobilenet_v3_small": 576,
        "regnet_y_400mf": 440,
        "resnet18": 512,
        "resnet50": 2048,
        "resnext50_32x4d": 2048,
        "shufflenet_v2_x1_0": 1024,
        "squeezenet1_1": 512,
        "swin_t": 768,
        "swin_v2_t": 768,
        "vgg11": 4096,
        "vit_b_16": 768,
        "vit_h_14": 1280,
        "wide_resnet50_2": 2048,
    }.items(),
)
def test_networks_of_every_family_are_cut_at_their_pooled_features(network: str, dim: int) -> None:
    assert embedding_dim(network, get_model_weights(network).DEFAULT) == dim


@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_features_are_what_the_whole_network_classifies(network: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole = get_model(network).eval()
        pictures_B3HW = torch.randn(2, 3, 96, 96)
    features = pooled_network(network, get_model_weights(network).DEFAULT).eval()
    features.load_state_dict({name: t for name, t in whole.state_dict().items() if name in features.state_dict()})
    classifier = whole.fc if network == "resnet18" else whole.classifier
    if network == "convnext_tiny":
        classifier = classifier[2]  # its norm belongs to the features
    with torch.inference_mode():
        torch.testing.assert_close(classifier(features(pictures_B3HW).flatten(1)), whole(pictures_B3HW))


@pytest.mark.parametrize(
    ("network", "left"),  # norms that no convolution precedes
    {
        "convnext_tiny": 0,
        "densenet121": 62,
        "efficientnet_b0": 0,
        "efficientnet_v2_s": 0,
        "googlenet": 0,
        "inception_v3": 0,
        "maxvit_t": 11,
        "mnasnet0_5": 0,
        "mobilenet_v2": 0,
        "mobilenet_v3_small": 0,
        "regnet_y_400mf": 0,
        "resnet18": 0,
        "shufflenet_v2_x0_5": 0,
        "squeezenet1_1": 0,
        "swin_t": 0,
    }.items(),
)
def test_a_folded_network_computes_what_torchvisions_does(network: str, left: int) -> None:
    whole = pooled_network(network, get_model_weights(network).DEFAULT).eval()
    side = 224 if network == "maxvit_t" else 96
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        for norm in norms(whole):  # as training leaves them
            learned = norm.state_dict()
            learned["running_mean"].normal_(0, 0.1)
            learned["running_var"].uniform_(0.5, 2)
            learned["weight"].uniform_(0.5, 2)
            learned["bias"].normal_(0, 0.1)
        pictures_B3HW = torch.randn(2, 3, side, side)
        expected = whole(pictures_B3HW)
        fold(whole, side)
        found = whole(pictures_B3HW)
    assert len(norms(whole)) == left
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert expected.std() > 1e-5  # or anything would be near


def test_networks_are_folded_beside_passes_of_others() -> None:
    other = pooled_network("resnet18", get_model_weights("resnet18").DEFAULT).eval()
    picture_13HW = torch.zeros(1, 3, 64, 64)
    folded = threading.Event()

    def passes() -> int:
        count = 0
        with torch.inference_mode():
            while not (folded.is_set() and count):
                other(picture_13HW)
                count += 1
        return count

    with ThreadPoolExecutor(1) as thread:
        counted = thread.submit(passes)
        for _ in range(5):
            fold(pooled_network("mobilenet_v3_small", get_model_weights("mobilenet_v3_small").DEFAULT), 224)
        folded.set()
        assert counted.result() > 0


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]


def test_preprocessing_is_that_of_torchvision(small: Encoder) -> None:
    preset = MobileNet_V3_Small_Weights.DEFAULT.transforms()
    for picture in photographs().values():
        assert torch.equal(small.prepare(file_of(picture, "PNG")), preset(picture))
    inception = load_encoder(
        EncoderSpec(
            name="i", version="v1", modality="image", dim=2048, network="torchvision:inception_v3", pinned="seeded:0"
        ),
        "cpu",
    )
    cat = photographs()["cat"]
    prepared = inception.prepare(file_of(cat, "PNG"))
    assert torch.equal(prepared, Inception_V3_Weights.DEFAULT.transforms()(cat))
    vectors = inception.encode([prepared, inception.prepare(file_of(photographs()["coffee"]))])
    assert vectors.shape == (2, 2048)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("size", [(2000, 100), (100, 2000), (1999, 101)])
def test_the_middle_of_a_long_picture_is_seen_as_torchvision_sees_it(size: tuple[int, int], small: Encoder) -> None:
    strip = photographs()["china"].resize(size)
    reference = MobileNet_V3_Small_Weights.DEFAULT.transforms()(strip)
    # Cut in the middle, so at most half a pixel beside the reference; normalised values span 4.5.
    assert (small.prepare(file_of(strip, "PNG")) - reference).abs().mean() < 0.1


def test_extreme_pictures_are_embedded(small: Encoder) -> None:
    pictures = [Image.new("RGB", size, "green") for size in [(1, 1), (1, 30_000), (30_000, 1), (2, 3)]]
    vectors = embed(small, *[file_of(picture, "PNG") for picture in pictures])
    assert vectors.shape == (4, 576)
    assert np.isfinite(vectors).all()


def test_what_is_no_picture_cannot_be_prepared(small: Encoder) -> None:
    with pytest.raises(DecodeError):
        small.prepare(b"<html></html>")


def test_an_embedding_does_not_depend_on_its_batch(small: Encoder) -> None:
    contents = [file_of(picture) for picture in photographs().values()]
    together = embed(small, *contents)
    alone = np.concatenate([embed(small, content) for content in contents])
    # float32, of the vector's length: other batch sizes are summed in another order
    assert (np.linalg.norm(together - alone, axis=1) < 1e-4 * np.linalg.norm(alone, axis=1)).all()


def test_the_same_batch_gives_the_same_bytes_twice(small: Encoder) -> None:
    contents = [file_of(picture) for picture in photographs().values()]
    assert embed(small, *contents).tobytes() == embed(small, *contents).tobytes()


@pytest.mark.parametrize("network", ["mobilenet_v3_small", "resnet18", "inception_v3", "efficientnet_b0", "swin_t"])
def test_seeded_networks_tell_photographs_apart(network: str) -> None:
    dim = embedding_dim(network, get_model_weights(network).DEFAULT)
    spec = EncoderSpec(
        name="x", version="v1", modality="image", dim=dim, network=f"torchvision:{network}", pinned="seeded:7"
    )
    pictures = list(photographs().values())
    # the same photograph twice, differently cropped, and other ones
    cropped = [picture.crop((8, 8, picture.width - 8, picture.height - 8)) for picture in pictures]
    vectors = embed(load_encoder(spec, "cpu"), *map(file_of, [*pictures, *cropped]))
    assert np.isfinite(vectors).all()
    assert (vectors.std(axis=0) > 0).mean() > 0.5  # of the values, vary from picture to picture
    assert cosines_after_centring(vectors[: len(pictures)]).min() < 0
    centred = vectors - vectors.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    nearest = (centred @ centred.T - 2 * np.eye(len(vectors))).argmax(axis=1)
    same = nearest == (np.arange(len(vectors)) + len(pictures)) % len(vectors)
    assert same.mean() >= 0.6


def seeded_digest(name: str, seed: int) -> str:
    """Of all bytes of a seeded network."""
    network = pooled_network(name, get_model_weights(name).DEFAULT)
    seed_parameters(network, seed)
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in network.state_dict().values())).hexdigest()


def test_a_seed_gives_the_same_bytes_in_every_process_and_another_seed_other_ones() -> None:
    networks = ("mobilenet_v3_small", "swin_t")
    code = f"from tests.encoders.test_image import seeded_digest\nfor name in {networks}: print(seeded_digest(name, 3))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [seeded_digest(name, 3) for name in networks]
    one, other = (pooled_network("mobilenet_v3_small", MobileNet_V3_Small_Weights.DEFAULT) for _ in range(2))
    seed_parameters(one, 3)
    seed_parameters(other, 4)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_building_a_network_draws_none_of_the_callers_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    pooled_network("mobilenet_v3_small", MobileNet_V3_Small_Weights.DEFAULT)
    assert torch.equal(torch.rand(4), expected)


def test_bfloat16_stays_near_float32(small: Encoder) -> None:
    half = load_encoder(
        EncoderSpec(
            name="small",
            version="v1",
            modality="image",
            dim=576,
            network="torchvision:mobilenet_v3_small",
            dtype="bfloat16",
            pinned="seeded:0",
        ),
        "cpu",
    )
    contents = [file_of(picture) for picture in photographs().values()]
    exact, rounded = embed(small, *contents), embed(half, *contents)
    assert rounded.dtype == np.float32
    # of the distance between different photographs
    distances = np.linalg.norm(exact[:, None] - exact[None], axis=2)[np.triu_indices(len(exact), 1)]
    assert np.median(np.linalg.norm(exact - rounded, axis=1)) < 0.1 * np.median(distances)


def test_a_failing_network_is_an_encode_error(small: Encoder) -> None:
    with pytest.raises(EncodeError, match="RuntimeError"):
        small.encode([torch.zeros(5, 64, 64)])
