"""The keys that a view holds, found once in history and kept in a file: an interrupted command goes on with them."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from embark.console import err

if TYPE_CHECKING:
    from feast import FeatureStore

    from encoders.spec import EncoderSpec


def found_keys(store: "FeatureStore", spec: "EncoderSpec", folder: Path, *, anew: bool, use: str = "") -> Path:
    """A parquet file of the columns `key` and `event_time`; the caller removes it when it is done with it.

    Args:
        folder: where such files lie.
        anew: whatever an earlier run found.
        use: names what the keys are for: another use has another file.

    Raises:
        HistoryUnreadable: see `write_newest`.
    """
    from feature_repo.offline.newest import write_newest

    named = hashlib.blake2b(f"{store.project}\0{spec.view}\0{use}".encode(), digest_size=12).hexdigest()
    path = folder / f"{named}.parquet"
    if anew or not path.exists():
        with err.status(f"finding the keys of {spec.view} in history"):
            write_newest(store, spec, path)
    return path
