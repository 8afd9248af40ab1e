"""The tree shows the architecture, and dependencies point one way."""

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_FREE = (
    "encoders.spec",
    "encoders.keys",
    "encoders.matrix",
    "encoders.weights",
    "encoders.client",
    "encoders.traces",
)
MAY_IMPORT = {
    "encoders": set(),
    # of `encoders`, only what is free of torch
    "feature_repo": {"encoders"},
    "materializer": {"encoders", "feature_repo"},
    "serving": {"encoders", "feature_repo", "materializer"},
    "training": {"encoders", "feature_repo", "materializer"},
    "embark": {"encoders", "feature_repo", "materializer", "serving", "training"},
}
PACKAGES = set(MAY_IMPORT)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_dependencies_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        others = {name.split(".")[0] for name in imports(path)} & PACKAGES - {package}
        assert others <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {others - MAY_IMPORT[package]}"


@pytest.mark.parametrize("package", ["feature_repo", "materializer", "serving"])
def test_only_the_torch_free_half_of_encoders_is_used(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        if path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            continue
        of_encoders = {name for name in imports(path) if name.startswith("encoders.")}
        assert of_encoders <= {*TORCH_FREE, "encoders.matrix_pb2", "encoders.retina_pb2"}, path


def test_only_settings_read_the_environment() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            if path.name != "settings.py":
                assert "os.environ[" not in text, path
                assert "getenv" not in text, path


@pytest.mark.parametrize("package", ["materializer", "serving"])
def test_no_module_of_the_look_up_path_imports_torch(package: str) -> None:
    modules = [f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(modules) > 10
    assert done.returncode == 0, done.stderr


def test_generated_code_is_that_of_the_proto_files() -> None:
    protos = sorted(p.relative_to(ROOT) for p in ROOT.glob("*/*.proto"))
    assert protos
    with tempfile.TemporaryDirectory() as folder:
        kinds = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *kinds, *map(str, protos)]
        subprocess.run(command, cwd=ROOT, check=True)
        for made in Path(folder).rglob("*_pb2*"):
            kept = ROOT / made.relative_to(folder)
            if made.name == "matrix_pb2_grpc.py":
                continue  # no service in it
            assert kept.read_text() == made.read_text(), f"{kept.name} is stale: run the command in CONTRIBUTING.md"
