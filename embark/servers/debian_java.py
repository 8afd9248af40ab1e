"""A Java 17 for Spark, out of Debian's package and without root.

    export JAVA_HOME=$(uv run python -m embark.servers.debian_java)

Spark needs the module `jdk.incubator.vector`, which the Java of Kafka and Cassandra (a wheel) does not have. Debian's
`openjdk-17-jre-headless` has it: the package is downloaded by apt as any user may, and unpacked into a folder. Whatever
Java the machine has is left alone and not asked for.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

PACKAGE = "openjdk-17-jre-headless"
MODULE = "jdk.incubator.vector"
SECONDS = 300  # for 44 MB and, where apt has no lists, as much again


class NoJava(Exception):
    """No Java for Spark can be had here; one line that says why."""


def java_home(folder: Path) -> Path:
    """The `JAVA_HOME` of a Java that Spark runs on, downloaded into `folder` where it is not there yet.

    Raises:
        NoJava: this is no Debian, or the package cannot be downloaded.
    """
    home = _unpacked(folder)
    if home is None:
        for tool in ("apt-get", "dpkg"):
            if which(tool) is None:
                raise NoJava(
                    f"no {tool} here: Java for Spark is Debian's {PACKAGE}; set JAVA_HOME to a Java 17 instead"
                )
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as place:
            _unpack(_downloaded(Path(place)), Path(place) / "unpacked")
            (Path(place) / "unpacked").rename(folder / "java")
        home = _unpacked(folder)
    if home is None or MODULE not in _run([str(home / "bin" / "java"), "--list-modules"]):
        raise NoJava(f"{PACKAGE} in {folder} has no {MODULE}, which Spark needs: remove the folder and try again")
    return home


def _unpacked(folder: Path) -> Path | None:
    found = sorted(folder.glob("java/usr/lib/jvm/java-17-openjdk-*/bin/java"))
    return found[0].parent.parent if found else None


def _downloaded(place: Path) -> Path:
    """The package's file, below `place`: by the machine's lists of packages, else by lists of our own."""
    try:
        _run(["apt-get", "download", PACKAGE], cwd=place)
    except NoJava:
        for each in ("lists/partial", "cache/archives/partial"):
            (place / each).mkdir(parents=True)
        ours = ["-o", f"Dir::State::Lists={place / 'lists'}", "-o", f"Dir::Cache={place / 'cache'}"]
        _run(["apt-get", *ours, "update"], cwd=place)
        _run(["apt-get", *ours, "download", PACKAGE], cwd=place)
    return next(place.glob(f"{PACKAGE}_*.deb"))


def _unpack(package: Path, root: Path) -> None:
    _run(["dpkg", "-x", str(package), str(root)])
    # Its settings are links into /etc, where an installed package would have put them.
    for link in (root / "usr").rglob("*"):
        if link.is_symlink() and str(link.readlink()).startswith("/etc/"):
            inside = root / str(link.readlink()).lstrip("/")
            if inside.exists():
                up = Path(*[".."] * len(link.parent.relative_to(root).parts))
                link.unlink()
                link.symlink_to(up / inside.relative_to(root))


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines() or [""]
        raise NoJava(f"Java for Spark cannot be had: `{' '.join(command[:2])} …` says {said[-1]}") from error
    return done.stdout


if __name__ == "__main__":
    try:
        print(java_home(Path(".embark") / "spark-java").resolve())
    except NoJava as no:
        sys.exit(str(no))
