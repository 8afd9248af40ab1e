"""New feature repos: `embark init`, and the demo's own."""

import re
import shutil
from pathlib import Path

import feature_repo

FILES = ("feature_store.yaml", "catalog.py", "definitions.py")
TEMPLATE = Path(feature_repo.__file__).parent


class RepoExists(Exception):
    """There is a feature repo already; nothing is overwritten."""


def write_repo(
    folder: Path,
    *,
    project: str = "embark",
    keyspace: str = "embark",
    kafka: str = "127.0.0.1:9092",
    cassandra_hosts: list[str] | None = None,
    cassandra_port: int = 9042,
) -> None:
    """Writes a feature repo with the encoders of the one in this project, for servers at the given addresses.

    Raises:
        RepoExists: the folder holds a feature_store.yaml.
    """
    if (folder / "feature_store.yaml").exists():
        raise RepoExists(f"{folder} holds a feature repo already")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(TEMPLATE / name, folder / name)
    _substitute(
        folder / "feature_store.yaml",
        {
            r"^project: .*": f"project: {project}",
            r"^  hosts: .*": f"  hosts: [{', '.join(cassandra_hosts or ['127.0.0.1'])}]",
            r"^  port: .*": f"  port: {cassandra_port}",
            r"^  keyspace: .*": f"  keyspace: {keyspace}",
        },
    )
    _substitute(folder / "catalog.py", {r'^KAFKA = "[^"]*"': f'KAFKA = "{kafka}"'})


def _substitute(path: Path, replacements: dict[str, str]) -> None:
    text = path.read_text()
    for pattern, replacement in replacements.items():
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{path.name}: {pattern!r} stands {count} times, once is expected")
    path.write_text(text)
