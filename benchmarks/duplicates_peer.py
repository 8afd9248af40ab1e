"""imagededup's hashes of pictures, in a process of its own: its files lie where our environment has none of them.

    python -m benchmarks.duplicates_peer pictures.npz hashes.json

Reads arrays (height, width, 3) of bytes by number; writes, for each method, hexadecimal hashes in their order.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from imagededup.methods import AHash, DHash, PHash, WHash

METHODS = {"AHash": AHash, "DHash": DHash, "PHash": PHash, "WHash": WHash}


def main() -> None:
    pictures, out = sys.argv[1:]
    with np.load(pictures) as held:
        arrays = [held[str(i)] for i in range(len(held.files))]
    told = {}
    for name, method in METHODS.items():
        hasher = method(verbose=False)
        began = time.perf_counter()
        told[name] = {
            "hashes": [hasher.encode_image(image_array=array) for array in arrays],
            "seconds": time.perf_counter() - began,
        }
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main()
