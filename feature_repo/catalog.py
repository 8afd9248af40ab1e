"""The encoders of this archive. To add one: declare it here, then `feast apply`; running servers pick it up.

Weights and preprocessing of a version never change: declare a new version instead. Both live side by side.
"""

from encoders.spec import EncoderSpec

KAFKA = "127.0.0.1:9092"  # where look-ups ask for embeddings that are missing
HISTORY = "data/history"  # where embeddings are kept for ever: a folder below this one, or s3://bucket/prefix
S3_ENDPOINT = ""  # URL of a server that speaks S3, in the place of Amazon's

ENCODERS = [
    EncoderSpec(
        name="inception_v3",
        version="v1",
        modality="image",
        dim=2048,
        network="torchvision:inception_v3",
        fallback_weights="seeded:0",
    ),
    EncoderSpec(
        name="mobilenet_v3_small",
        version="v1",
        modality="image",
        dim=576,
        network="torchvision:mobilenet_v3_small",
        fallback_weights="seeded:0",
    ),
    EncoderSpec(
        name="text_lstm",
        version="v1",
        modality="text",
        dim=256,
        network="text_lstm",
        weights="seeded:0",
    ),
]

# A model names the embeddings that it needs through a feature service.
SERVICES = {
    "ctr": ["inception_v3__v1", "text_lstm__v1"],
    "ctr_small": ["mobilenet_v3_small__v1", "text_lstm__v1"],
}
