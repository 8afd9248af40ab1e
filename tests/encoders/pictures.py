"""Real photographs, from the wheels of scikit-image and scikit-learn, and files made of them."""

import io
from functools import cache
from typing import Any

import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images


@cache
def photographs() -> dict[str, Image.Image]:
    """RGB, some 500 pixels a side."""
    china, flower = load_sample_images().images
    arrays = {
        "astronaut": skimage.data.astronaut(),
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "china": china,
        "flower": flower,
    }
    return {name: Image.fromarray(array) for name, array in arrays.items()}


def file_of(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
