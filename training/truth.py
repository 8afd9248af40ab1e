"""The truth of a synthetic log: the probability of a click, from what is in the picture, the title and the context.

What a picture does is measured from its pixels, by formulas and by no encoder that we ship: an archived embedding helps
a model only as far as it holds such things too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BASE = -2.6  # logit: about 7 of 100 are clicked

PUBLISHERS: Mapping[str, float] = {
    "daily-mirror-image": 0.3,
    "field-notes": 0.1,
    "harbour-post": 0.0,
    "north-window": -0.1,
    "old-ledger": -0.4,
    "quick-look": 0.4,
}
SEGMENTS: Mapping[str, float] = {"commuter": 0.15, "night-owl": 0.0, "reader": -0.2, "visual": 0.1}
DEVICES: Mapping[str, float] = {"desktop": -0.15, "phone": 0.1, "tablet": 0.0}

COLOURFUL, EDGES, BRIGHT, MIDDLE = 0.55, -0.35, 0.25, -0.3  # logit per standard deviation (MIDDLE: per its square)
VISUAL_COLOURFUL = 0.3  # some users look at pictures more than others
READER_TITLE = 0.5  # and some at titles: the title's effect once more, by half
EVENING = 0.25  # logit between the best and the mean hour, 20:00 UTC

# Mean and standard deviation over parts of our photographs; fixed, so that a picture's effect depends on it alone.
SCALES: Mapping[str, tuple[float, float]] = {
    "colourfulness": (29.0, 27.0),
    "edge_density": (0.12, 0.13),
    "brightness": (0.38, 0.17),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the pixels of a picture say."""

    colourfulness: float  # of Hasler and Süsstrunk (2003), from 0 (grey) to about 110
    edge_density: float  # share of pixels where brightness changes by more than 0.1 to a neighbour
    brightness: float  # mean luma, 0 to 1

    @classmethod
    def of(cls, picture: Image.Image) -> "Measured":
        rgb = np.asarray(picture.convert("RGB"), dtype=np.float64)  # (H, W, 3)
        red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
        red_green, yellow_blue = red - green, (red + green) / 2 - blue
        spread = np.hypot(red_green.std(), yellow_blue.std())
        colourfulness = spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
        luma = (rgb @ (0.299, 0.587, 0.114)) / 255  # (H, W)
        across, down = np.abs(np.diff(luma, axis=1))[:-1], np.abs(np.diff(luma, axis=0))[:, :-1]
        return cls(
            colourfulness=float(colourfulness),
            edge_density=float((np.maximum(across, down) > 0.1).mean()),
            brightness=float(luma.mean()),
        )

    def standardised(self, name: str) -> float:
        mean, deviation = SCALES[name]
        return float(np.clip((getattr(self, name) - mean) / deviation, -2.5, 2.5))

    @property
    def effect(self) -> float:
        """What the picture does to the logit of a click, whoever sees it."""
        colourful, edges, bright = map(self.standardised, SCALES)
        return COLOURFUL * colourful + EDGES * edges + BRIGHT * bright + MIDDLE * (bright**2 - 1)


def click_probability(
    *,
    picture: NDArray[np.float64],
    colourfulness: NDArray[np.float64],
    title: NDArray[np.float64],
    publisher: NDArray[np.str_],
    segment: NDArray[np.str_],
    device: NDArray[np.str_],
    hour: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The Bayes-optimal score of N impressions, (N,) in (0, 1); no model can know more than this.

    Args:
        picture, title: effects on the logit, (N,).
        colourfulness: standardised, (N,).
        publisher, segment, device: names, (N,).
        hour: of UTC, (N,).
    """
    logit = BASE + picture + title
    logit += _of(PUBLISHERS, publisher) + _of(SEGMENTS, segment) + _of(DEVICES, device)
    logit += VISUAL_COLOURFUL * colourfulness * (segment == "visual")
    logit += READER_TITLE * title * (segment == "reader")
    logit += EVENING * np.cos((hour - 20) / 24 * 2 * np.pi)
    probability: NDArray[np.float64] = 1 / (1 + np.exp(-logit))
    return probability


def _of(effects: Mapping[str, float], names: NDArray[np.str_]) -> NDArray[np.float64]:
    known, place = np.unique(names, return_inverse=True)
    found: NDArray[np.float64] = np.array([effects[str(name)] for name in known])[place]
    return found
