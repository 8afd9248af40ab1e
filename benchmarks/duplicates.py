"""Duplicates: what is found among planted ones, against imagededup's hashes; and a million embeddings.

    uv run python -m benchmarks.duplicates [--json] [--fast] [--check] [--plots FOLDER]

Pictures: tiles of the photographs in scikit-image and scikit-learn that do not overlap, and of each a copy encoded
anew, resized, cropped, recoloured and watermarked. Every pair of all of them is scored by the cosine of an encoder's
embeddings (less their mean, as `embark duplicates` does) and by the Hamming distance of four hashes. A copy counts as
found where its pair with its tile lies above the threshold at which 99 % of all pairs are copies. Texts: titles and
three paraphrases. Without internet encoders have random weights: then the table says so. --plots draws precision
against recall, over all pairs and for each kind of change. Twelve minutes, or less than one with --fast.

Claims: at precision 0.99 the embeddings find at least as many copies as the best hash; the approximate search of a
million embeddings of 512 floats finds at least 95 % of the pairs that the exact one does.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from benchmarks import duplicates_curves
from benchmarks.comparison import options, publish
from benchmarks.memory import Peak
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec
from encoders.weights import pin_weights
from training.duplicate_threshold import precision_cut
from training.duplicates import DuplicatesError, centre_of, to_unit_length
from training.near_pairs import NearPairs, near_pairs
from training.photographs import photographs, pictures

IMAGES = EncoderSpec(
    name="mobilenet_v3_small",
    version="v1",
    modality="image",
    dim=576,
    network="torchvision:mobilenet_v3_small",
    fallback_weights="seeded:0",
)
TEXTS = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=256, network="text_lstm", weights="seeded:0")
PRECISION = 0.99
TILE = 128  # pixels, at least
PEER = ("imagededup==0.3.3.post2", "PyWavelets==1.9.0")
DIM = 512
THRESHOLD = 0.9


def encoded(picture: Image.Image, quality: int = 90) -> Image.Image:
    out = BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return Image.open(BytesIO(out.getvalue())).convert("RGB")


def watermarked(picture: Image.Image) -> Image.Image:
    over = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(over)
    width, height = picture.size
    draw.rectangle((0, height * 0.42, width, height * 0.58), fill=(255, 255, 255, 96))
    draw.text((width * 0.1, height * 0.44), "example shop", fill=(0, 0, 0, 200), font_size=max(10, height // 9))
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


def cropped(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.crop((int(width * 0.06), int(height * 0.04), int(width * 0.97), int(height * 0.95)))


CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "encoded anew": lambda p: encoded(p, 30),
    "resized": lambda p: p.resize((max(8, p.width // 2), max(8, p.height // 2))),
    "cropped": cropped,
    "recoloured": lambda p: ImageEnhance.Brightness(ImageEnhance.Color(p).enhance(0.5)).enhance(1.2),
    "watermarked": watermarked,
}
PARAPHRASES: Mapping[str, Callable[[str], str]] = {
    "case and stops": lambda t: t.upper() + ".",
    "words moved": lambda t: " ".join([*t.split()[2:], *t.split()[:2]]),
    "words left out": lambda t: " ".join(w for w in t.split() if w.lower() not in {"a", "an", "the", "of", "in", "on"}),
}


def tiles(most: int) -> list[Image.Image]:
    """Parts of all photographs that do not overlap; those without any structure are left out."""
    found = []
    for picture in pictures().values():
        across, down = max(1, picture.width // TILE), max(1, picture.height // TILE)
        across, down = min(across, 5), min(down, 5)
        wide, high = picture.width // across, picture.height // down
        for i in range(across):
            for j in range(down):
                tile = picture.crop((i * wide, j * high, (i + 1) * wide, (j + 1) * high))
                if np.asarray(tile.convert("L"), dtype=np.float32).std() > 12:
                    found.append(tile)
    order = np.random.default_rng(0).permutation(len(found))[:most]
    return [found[i] for i in order]


def planted(most: int) -> tuple[list[Image.Image], NDArray[np.int64], list[str]]:
    """Pictures, the tile that each shows, and how it was changed."""
    shown, family, change = [], [], []
    for number, tile in enumerate(tiles(most)):
        shown.append(encoded(tile))
        family.append(number)
        change.append("")
        for name, changed in CHANGES.items():
            shown.append(encoded(changed(tile)))
            family.append(number)
            change.append(name)
    return shown, np.array(family), change


def scored(
    similarity: NDArray[np.floating], family: NDArray[np.int64], change: Sequence[str], way: str, rate: float | None
) -> list[dict[str, Any]]:
    """Recall of each kind of change at the threshold that has the precision over all pairs; (N, N) similarities."""
    left, right = np.triu_indices(len(family), 1)
    same = family[left] == family[right]
    scores = similarity[left, right]
    try:
        cut, precision, recall = precision_cut(scores, same, PRECISION)
    except DuplicatesError:  # two pictures that are none have the best score
        cut, precision, recall = float("inf"), 0.0, 0.0
    original = {f: i for i, (f, c) in enumerate(zip(family.tolist(), change, strict=True)) if not c}
    kinds: dict[str, list[bool]] = {}
    for i, (f, c) in enumerate(zip(family.tolist(), change, strict=True)):
        if c:
            kinds.setdefault(c, []).append(bool(similarity[i, original[f]] >= cut))
    row = {"what": "copies", "way": way, "precision": round(precision, 4), "recall, all pairs": round(recall, 4)}
    row |= {name: round(float(np.mean(hits)), 4) for name, hits in kinds.items()}
    return [row | {"items/s": rate}]


def hamming(hashes: Sequence[str]) -> NDArray[np.float32]:
    """How many bits two hashes share, (N, N)."""
    bits = np.unpackbits(np.array([list(bytes.fromhex(h)) for h in hashes], dtype=np.uint8), axis=1).astype(np.float32)
    return np.float32(bits.shape[1]) - (bits @ (1 - bits).T + (1 - bits) @ bits.T)


def of_peer(shown: Sequence[Image.Image], folder: Path) -> dict[str, Any]:
    """imagededup's hashes: its package alone, beside the libraries that are here, in a process of its own."""
    place = folder / "peer"
    subprocess.run(["uv", "pip", "install", "-q", "--no-deps", "--target", place, *PEER], check=True)  # noqa: S603, S607
    arrays: dict[str, Any] = {str(i): np.asarray(p) for i, p in enumerate(shown)}
    np.savez(folder / "pictures.npz", **arrays)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.duplicates_peer",
        str(folder / "pictures.npz"),
        str(folder / "h"),
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(place)})  # noqa: S603 - our own command
    told: dict[str, Any] = json.loads((folder / "h").read_text())
    return told


def embedded_pictures(shown: Sequence[Image.Image]) -> tuple[NDArray[np.float32], float, EncoderSpec]:
    spec = pin_weights(IMAGES, lambda line: None)
    encoder = load_encoder(spec, "cpu")
    began = time.perf_counter()
    vectors = []
    for start in range(0, len(shown), 16):
        some = []
        for picture in shown[start : start + 16]:
            out = BytesIO()
            picture.save(out, "PNG")
            some.append(encoder.prepare(out.getvalue()))
        vectors.append(encoder.encode(some))
    return np.concatenate(vectors), len(shown) / (time.perf_counter() - began), spec


def compared_pictures(given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    shown, family, change = planted(24 if given.fast else 200)
    vectors, rate, spec = embedded_pictures(shown)
    to_unit_length(vectors, centre_of(vectors))
    name = f"{spec.view}{'' if spec.pretrained else ', random weights'}"
    similarity: dict[str, NDArray[np.floating]] = {name: vectors @ vectors.T}
    rows = scored(similarity[name], family, change, name, round(rate))
    ours = rows[0]["recall, all pairs"]
    with tempfile.TemporaryDirectory() as folder:
        for method, told in of_peer(shown, Path(folder)).items():
            way = f"imagededup {method}"
            similarity[way] = hamming(told["hashes"])
            rows += scored(similarity[way], family, change, way, round(len(shown) / told["seconds"]))
    if given.plots:
        title = f"{len(set(family.tolist()))} pictures, each with a copy of every kind"
        duplicates_curves.draw(given.plots / "pictures.png", similarity, family, change, title)
    best = max(row["recall, all pairs"] for row in rows[1:])
    claim = f"recall {ours:.3f} at precision {PRECISION}, the best hash {best:.3f}"
    return rows, {} if given.fast else {claim: ours >= best}


def compared_texts(given: argparse.Namespace) -> list[dict[str, Any]]:
    spec = pin_weights(TEXTS, lambda line: None)
    encoder = load_encoder(spec, "cpu")
    titles = [photograph.title for photograph in photographs()]
    ways: dict[str, Callable[[str], str]] = {"": str, **PARAPHRASES}
    texts, family, change = [], [], []
    for number, title in enumerate(titles):
        for name, changed in ways.items():
            texts.append(changed(title))
            family.append(number)
            change.append(name)
    vectors = np.concatenate(
        [
            encoder.encode([encoder.prepare(text.encode()) for text in texts[i : i + 32]])
            for i in range(0, len(texts), 32)
        ]
    )
    to_unit_length(vectors, centre_of(vectors))
    way = f"{spec.view}, random weights"
    rows = scored(vectors @ vectors.T, np.array(family), change, way, None)
    if given.plots:
        title = f"{len(titles)} titles, each in every paraphrase"
        similarity = {way: vectors @ vectors.T}
        duplicates_curves.draw(given.plots / "titles.png", similarity, np.array(family), change, title)
    return [row | {"what": "paraphrases"} for row in rows]


def many(count: int, folder: Path) -> NDArray[np.float32]:
    """Embeddings as of a catalogue: around centres that are themselves related, and a tenth near copies of others."""
    draw = np.random.default_rng(0)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.dtype(np.float32), (count, DIM))
    centres = draw.standard_normal((1000, DIM), dtype=np.float32)
    originals = count * 9 // 10
    for start in range(0, originals, 50_000):
        rows = min(50_000, originals - start)
        vectors[start : start + rows] = centres[draw.integers(1000, size=rows)]
        vectors[start : start + rows] += draw.standard_normal((rows, DIM), dtype=np.float32)
    for start in range(originals, count, 50_000):
        rows = min(50_000, count - start)
        aside = draw.uniform(0.05, 0.45, (rows, 1)).astype(np.float32)  # cosines from 0.999 to about 0.9
        copied = vectors[np.sort(draw.integers(originals, size=rows))]
        vectors[start : start + rows] = copied + 1.4 * aside * draw.standard_normal((rows, DIM), dtype=np.float32)
    to_unit_length(vectors, np.zeros(DIM, dtype=np.float32))
    return vectors


def searched(count: int, given: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, bool]]:
    """In a process of its own: what other work left behind would hide memory that the search takes."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        row = process.submit(search, count).result()
    claim = f"recall {row['recall']:.3f} of the approximate search (0.95)"
    return [row], {} if given.fast else {claim: row["recall"] >= 0.95}


def search(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        vectors = many(count, Path(folder))
        began = time.perf_counter()
        with Peak() as peak:
            found: NearPairs = near_pairs(vectors, THRESHOLD, exact_items=0)
        seconds = time.perf_counter() - began
    return {
        "what": f"{count:,} embeddings of {DIM}",
        "way": f"approximate, {found.probes} of {found.lists} lists",
        "pairs": len(found.left),
        "recall": round(found.recall, 4),
        "of": f"{found.recall_from} {'planted' if found.planted else 'sampled'} pairs",
        "s": round(seconds, 1),
        "compared pairs/s": round(found.compared / seconds),
        "all pairs/s": round(count * (count - 1) / 2 / seconds),
        "vectors MiB": vectors.nbytes >> 20,
        "peak MiB besides": peak.mib,
    }


def main() -> None:
    given = options(__doc__, lambda p: p.add_argument("--plots", type=Path, metavar="FOLDER", help="draw curves here"))
    rows, claims = compared_pictures(given)
    texts = compared_texts(given)
    large, of_many = searched(20_000 if given.fast else 1_000_000, given)
    if given.json:
        publish("Duplicates", [*rows, *texts, *large], claims | of_many, given)
        return
    quiet = argparse.Namespace(**{**vars(given), "check": False})
    publish("Copies of pictures", rows, {}, quiet)
    publish("Paraphrased titles", texts, {}, quiet)
    publish("A large search", large, claims | of_many, given)


if __name__ == "__main__":
    main()
