"""Feature repos: written by `embark init` and the demo, opened by every part, registered by `embark apply`."""

import contextlib
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from feast import FeatureStore
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total, cli_check_repo

from feature_repo.views import allowing

STORES = ("feature_store.yaml", "feature_store.spark.yaml")
FILES = (*STORES, "catalog.py", "definitions.py")
OF_A_FILE = r"^  path: .*\n  registry_store_type: .*\n"  # lines of the registry in feature_store.yaml
TEMPLATE = Path(__file__).resolve().parent.parent / "feature_repo"


class RepoError(Exception):
    """A feature repo cannot be used as asked; one line that says what to do."""


class RepoExists(RepoError):
    """There is a feature repo already; nothing is overwritten."""


def write_repo(
    folder: Path,
    *,
    project: str = "embark",
    keyspace: str = "embark",
    kafka: str = "127.0.0.1:9092",
    cassandra_hosts: list[str] | None = None,
    cassandra_port: int = 9042,
    registry: str = "",
    history: str = "",
    s3_endpoint: str = "",
) -> None:
    """Writes a feature repo with the encoders of the one in this project, for servers at the given addresses.

    Args:
        registry: URL of the database of Feast's SQL registry, as `postgresql://…`; a file below `folder` otherwise.
            Feast fills in `${NAME}` from the environment, so that no password need be written down.
        history: folder of all histories, from `folder`, or a URI; `data/history` otherwise.
        s3_endpoint: URL of a server that speaks S3, in the place of Amazon's.

    Raises:
        RepoExists: the folder holds a feature_store.yaml.
    """
    if (folder / "feature_store.yaml").exists():
        raise RepoExists(f"{folder} holds a feature repo already")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(TEMPLATE / name, folder / name)
    for name in STORES:
        _substitute(
            folder / name,
            {
                r"^project: .*": f"project: {project}",
                r"^  hosts: .*": f"  hosts: [{', '.join(cassandra_hosts or ['127.0.0.1'])}]",
                r"^  port: .*": f"  port: {cassandra_port}",
                r"^  keyspace: .*": f"  keyspace: {keyspace}",
            }
            | ({OF_A_FILE: f"  registry_type: sql\n  path: {registry}\n"} if registry else {}),
        )
    _substitute(
        folder / "catalog.py",
        {r'^KAFKA = "[^"]*"': f'KAFKA = "{kafka}"'}
        | ({r'^HISTORY = "[^"]*"': f'HISTORY = "{history}"'} if history else {})
        | ({r'^S3_ENDPOINT = "[^"]*"': f'S3_ENDPOINT = "{s3_endpoint}"'} if s3_endpoint else {}),
    )


def _literally(replacement: str, _: re.Match[str]) -> str:
    return replacement


def _substitute(path: Path, replacements: dict[str, str]) -> None:
    text = path.read_text()
    for pattern, replacement in replacements.items():
        text, count = re.subn(pattern, partial(_literally, replacement), text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{path.name}: {pattern!r} stands {count} times, once is expected")
    path.write_text(text)


class NoRepo(RepoError):
    """There is no feature repo where the settings say."""


def open_store(folder: Path) -> FeatureStore:
    """The feature store of a repo.

    Raises:
        NoRepo: the folder holds no feature_store.yaml.
    """
    check_repo(folder)
    return FeatureStore(repo_path=str(folder.resolve()))


def check_repo(folder: Path) -> None:
    """Raises:
    NoRepo: the folder holds no feature_store.yaml.
    """
    if not (folder / "feature_store.yaml").is_file():
        raise NoRepo(f"no feature repo at {folder.resolve()}: go to its parent, set EMBARK_REPO, or `embark init` one")


def apply_repo(folder: Path, *, allowed_modules: Sequence[str] = ()) -> None:
    """Registers what the repo declares: what `feast apply` does, in this process.

    Args:
        folder: of feature_store.yaml.
        allowed_modules: Python modules whose networks may run; they are also looked for in the folder.

    Raises:
        SpecError: a declaration that is wrong or differs from the registered one.
    """
    folder = folder.resolve()
    file = folder / "feature_store.yaml"
    cli_check_repo(folder, file)  # puts the folder on the path, as Feast's command does
    with allowing(allowed_modules), contextlib.chdir(Path.cwd()):  # Feast changes into the repo and stays there
        apply_total(load_repo_config(folder, file), folder, skip_source_validation=False)
