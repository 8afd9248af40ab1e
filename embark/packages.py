"""Whose packages are imported: names like `serving` are common, and another project's may lie on the path."""

import importlib.util
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("encoders", "feature_repo", "materializer", "serving", "training")


class ShadowedPackage(ImportError):
    """One of EmbArk's packages would be imported from somewhere else."""


def check_packages(home: Path = HOME) -> None:
    """Makes sure that EmbArk's packages lie beside `embark/`.

    Raises:
        ShadowedPackage: one does not; the message names the intruder.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ShadowedPackage(
                f"package {name!r} is imported from {found or 'nowhere'}, not from {home / name}: "
                "another project shadows it; uninstall that one or use an environment of its own (`uv run`)"
            )
