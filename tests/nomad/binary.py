"""A real Nomad, built from its source once and kept in the user's cache: to test with, nothing of it is ours to ship.

Go comes from a wheel and downloads the source where it is set to; what it gets is checked against Go's own log of
checksums. A C compiler is needed too. Ten minutes on two slow cores; seconds once it is there.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import platformdirs
from filelock import FileLock

GO_MOD = Path(__file__).with_name("go.mod")
PACKAGE = "github.com/hashicorp/nomad"


def nomad_binary() -> Path:
    """The command `nomad`, built if need be."""
    cache = platformdirs.user_cache_path("embark") / "nomad"
    cache.mkdir(parents=True, exist_ok=True)
    binary = cache / f"nomad-{hashlib.sha256(GO_MOD.read_bytes()).hexdigest()[:12]}"
    with FileLock(cache / "build.lock"):
        if not binary.exists():
            _build(binary)
    return binary


def _build(binary: Path) -> None:
    with TemporaryDirectory(dir=binary.parent) as folder:
        shutil.copyfile(GO_MOD, Path(folder) / "go.mod")
        made = Path(folder) / "nomad"
        done = subprocess.run(
            [
                Path(sys.executable).with_name("go"),
                *("build", "-mod=mod", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", made, PACKAGE),
            ],
            cwd=folder,
            env=os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"Nomad cannot be built:\n{done.stdout[-4000:]}"
        made.replace(binary)
