"""Real photographs that no download is needed for: those inside the wheels of scikit-image and scikit-learn.

A small catalogue with titles, which the demo serves, and the pictures themselves, which synthetic click logs take parts
of.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

SIDE = 400  # pixels, the longer one
QUALITY = 90

Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

# package and file in it → name, part, title of each photograph
SOURCES: Mapping[tuple[str, str], tuple[tuple[str, Box, str], ...]] = {
    ("skimage", "data/astronaut.png"): (
        ("astronaut", WHOLE, "An astronaut in an orange suit before a shuttle model"),
        ("astronaut-portrait", (0.15, 0.0, 0.75, 0.5), "A portrait of a smiling astronaut"),
        ("astronaut-suit", (0.0, 0.45, 0.7, 1.0), "An orange space suit with badges"),
    ),
    ("skimage", "data/chelsea.png"): (
        ("cat", WHOLE, "A ginger tabby cat looking into the camera"),
        ("cat-eyes", (0.25, 0.1, 0.85, 0.7), "The green eyes of a ginger cat"),
        ("cat-fur", (0.0, 0.0, 0.5, 0.75), "The striped fur of a ginger cat"),
    ),
    ("skimage", "data/coffee.png"): (
        ("coffee", WHOLE, "A cup of coffee with a spoon on a wooden table"),
        ("coffee-cup", (0.22, 0.0, 0.78, 0.6), "A white cup of coffee seen from above"),
        ("coffee-spoon", (0.25, 0.45, 0.85, 1.0), "A spoon on an orange saucer"),
    ),
    ("skimage", "data/rocket.jpg"): (
        ("rocket", WHOLE, "A rocket on its launch pad at dusk"),
        ("rocket-pad", (0.3, 0.2, 0.75, 1.0), "A white rocket lit by floodlights"),
        ("rocket-towers", (0.0, 0.25, 0.5, 1.0), "Launch towers against a blue evening sky"),
    ),
    ("skimage", "data/hubble_deep_field.jpg"): (
        ("galaxies", WHOLE, "Thousands of galaxies in the deep field"),
        ("galaxies-far", (0.0, 0.0, 0.5, 0.55), "Distant galaxies on a black sky"),
        ("galaxies-near", (0.4, 0.4, 1.0, 1.0), "Bright and faint galaxies on a black sky"),
    ),
    ("skimage", "data/retina.jpg"): (
        ("retina", WHOLE, "The retina of a human eye"),
        ("retina-disc", (0.02, 0.22, 0.55, 0.75), "The bright optic disc of an eye"),
        ("retina-vessels", (0.35, 0.1, 0.95, 0.7), "Fine blood vessels of an eye"),
    ),
    ("skimage", "data/motorcycle_left.png"): (
        ("motorcycle", WHOLE, "A red motorcycle in a garage"),
        ("motorcycle-engine", (0.25, 0.25, 0.75, 0.95), "The engine of a red motorcycle"),
        ("motorcycle-wheel", (0.55, 0.3, 1.0, 1.0), "The front wheel of a red motorcycle"),
    ),
    ("skimage", "data/coins.png"): (
        ("coins", WHOLE, "Ancient coins in four rows"),
        ("coins-small", (0.0, 0.0, 0.6, 0.55), "Small ancient coins in two rows"),
        ("coins-large", (0.4, 0.45, 1.0, 1.0), "Large ancient coins with heads in relief"),
    ),
    ("skimage", "data/moon.png"): (
        ("moon", WHOLE, "The surface of the moon"),
        ("moon-crater", (0.0, 0.0, 0.6, 0.55), "A round crater on the moon"),
        ("moon-pits", (0.2, 0.5, 0.8, 1.0), "Dark pits on the surface of the moon"),
    ),
    ("skimage", "data/ihc.png"): (
        ("tissue", WHOLE, "Stained tissue under a microscope"),
        ("tissue-gland", (0.0, 0.0, 0.55, 0.55), "Brown glands under a microscope"),
        ("tissue-cells", (0.45, 0.4, 1.0, 1.0), "Blue cell nuclei under a microscope"),
    ),
    ("sklearn", "datasets/images/china.jpg"): (
        ("temple", WHOLE, "A pagoda with green roofs above a lake"),
        ("temple-roof", (0.15, 0.05, 0.6, 0.6), "The curved green roofs of a pagoda"),
        ("temple-lake", (0.5, 0.25, 1.0, 1.0), "Trees before a misty lake"),
    ),
    ("sklearn", "datasets/images/flower.jpg"): (
        ("flower", WHOLE, "An orange dahlia in bloom"),
        ("flower-petals", (0.25, 0.15, 0.72, 0.75), "The petals of an orange dahlia"),
        ("flower-bud", (0.3, 0.5, 0.95, 1.0), "Two orange dahlias, one below the other"),
    ),
}

# Pictures beyond the catalogue's: those of one kind of surface or in grey, which nobody would look up.
OTHERS = (
    ("skimage", "data/brick.png"),
    ("skimage", "data/camera.png"),
    ("skimage", "data/clock_motion.png"),
    ("skimage", "data/grass.png"),
    ("skimage", "data/gravel.png"),
    ("skimage", "data/page.png"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """One item of the catalogue."""

    name: str
    title: str
    source: str  # package and file that it comes from
    jpeg: bytes


@cache
def photographs() -> tuple[Photograph, ...]:
    """36 photographs of at most 400 pixels a side: twelve, and two parts of each.

    Raises:
        ModuleNotFoundError: a package that they lie in is not installed.
    """
    found = []
    for (package, file), parts in SOURCES.items():
        with Image.open(_home(package) / file) as picture:
            whole = picture.convert("RGB")
        found += [
            Photograph(name=name, title=title, source=f"{package}/{file}", jpeg=_jpeg(_part(whole, box)))
            for name, box, title in parts
        ]
    return tuple(found)


def pictures() -> dict[str, Image.Image]:
    """All photographs, whole and in colour: `package/file` → picture.

    Raises:
        ModuleNotFoundError: a package that they lie in is not installed.
    """
    found = {}
    for package, file in (*SOURCES, *OTHERS):
        with Image.open(_home(package) / file) as picture:
            found[f"{package}/{file}"] = picture.convert("RGB")
    return found


def _home(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"photographs lie in {package}, which is not installed")
    return Path(spec.origin).parent


def _part(picture: Image.Image, box: Box) -> Image.Image:
    width, height = picture.size
    left, top, right, bottom = box
    return picture.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


def _jpeg(picture: Image.Image) -> bytes:
    smaller = picture.copy()
    smaller.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    smaller.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
