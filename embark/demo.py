"""`embark demo`: the main job on real servers, from an empty archive to hits, history and a report; narrated.

Everything runs on free ports, in a folder of its own, and is stopped at the end. Each step says what must hold; the
demo holds if all of them do.
"""

IMAGE_VIEW = "mobilenet_v3_small__v1"
LARGE_IMAGE_VIEW = "inception_v3__v1"
TEXT_VIEW = "text_lstm__v1"
LATE_VIEW = "resnet18__v1"
LATE_ENCODER = """
ENCODERS.append(
    EncoderSpec(
        name="resnet18",
        version="v1",
        modality="image",
        dim=512,
        network="torchvision:resnet18",
        fallback_weights="seeded:0",
    )
)
"""
READY_SECONDS = 120.0
HIT_SECONDS = 180.0
REGISTERED_SECONDS = 10.0
HIT_SAMPLES = 300
NEIGHBOURS = 3
"""A promise of the demo that did not hold ends its step, not the demo."""


class NotHeld(Exception):
    """What a step promises does not hold; the message says what was seen instead."""
