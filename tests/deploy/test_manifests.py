"""What `deploy/` says is checked by the tools and schemas of those who read it, and against what this project has.

Docker and Kubernetes themselves are not run here; Nomad and Envoy are, by `-m nomad`.
"""

import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from embark.cli import cli
from embark.repo import FILES, write_repo
from embark.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
JOBS = sorted((DEPLOY / "nomad").glob("*.nomad.hcl"))
BIN = Path(sys.executable).parent
PARTS = ("embark", "kfc", "retina")
UID = 10001

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@functools.cache
def manifests() -> list[dict[str, Any]]:
    """All of the base; not to be changed."""
    files = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
    return [each for path in files for each in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in manifests() if each["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Name of the workload → specification of its pod."""
    found = {name: each["spec"]["template"] for kind in ("Deployment", "Job") for name, each in of_kind(kind).items()}
    for name, each in of_kind("CronJob").items():
        found[name] = each["spec"]["jobTemplate"]["spec"]["template"]
    return {name: template["spec"] for name, template in found.items()}


def ours() -> dict[str, dict[str, Any]]:
    """Services of compose that run our image."""
    return {name: each for name, each in COMPOSE["services"].items() if each["image"].startswith("embark:")}


def commands() -> dict[str, list[str]]:
    """Where a command stands → its arguments of `embark`."""
    found = {f"compose {name}": each["command"] for name, each in ours().items()}
    found |= {f"kubernetes {name}": pod["containers"][0]["args"] for name, pod in pods().items()}
    for job in JOBS:
        text = job.read_text()
        if re.search(r"command = var\.embark\n", text):
            (arguments,) = re.findall(r"args    = \[(.*)\]", text)
            found[f"nomad {job.name}"] = re.findall(r'"([^"]*)"', arguments)
    return found


def environments() -> dict[str, Mapping[str, str]]:
    """Where a part stands → its environment, where that is given in full."""
    found = {f"compose {name}": each["environment"] for name, each in ours().items()}
    for name, pod in pods().items():
        found[f"kubernetes {name}"] = {each["name"]: each["value"] for each in pod["containers"][0].get("env", [])}
    return found


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_files_keep_to_the_compose_specification() -> None:
    files = sorted(DEPLOY.glob("compose*.yaml"))
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (len(files), done.returncode) == (2, 0), done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_manifests_keep_to_the_schemas_of_kubernetes(version: str) -> None:
    found = [*manifests(), yaml.safe_load((DEPLOY / "kubernetes" / "secret.example.yaml").read_text())]
    for each in found:
        kubernetes_validate.validate(each, version, strict=True)
    kinds = {each["kind"] for each in found}
    assert {"HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "Job"} <= kinds


def test_the_kustomization_names_every_manifest_once() -> None:
    named = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(named) == sorted(path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")


def test_every_command_is_one_of_ours() -> None:
    assert {"compose apply", "kubernetes embark-compact", "nomad kfc.nomad.hcl"} <= set(commands())
    for where, (name, *arguments) in commands().items():
        assert name in cli.commands, where
        cli.commands[name].make_context(name, list(arguments))  # a usage error otherwise


def test_every_setting_is_one_of_ours() -> None:
    known = {f"EMBARK_{name.upper()}" for name in Settings.model_fields}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    named = {path.name: set(re.findall(r"EMBARK_[A-Z0-9_]+", path.read_text())) for path in files}
    assert sum(map(len, named.values())) > 20
    assert {name: unknown for name, all_ in named.items() if (unknown := all_ - known)} == {}


def test_every_value_of_a_setting_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in environments().values():
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                assert isinstance(value, str)
                patch.setenv(name, value)
            Settings()


def test_each_deployed_part_is_scaled_balanced_and_kept_through_disruptions() -> None:
    for kind in ("Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget"):
        assert set(of_kind(kind)) == set(PARTS), kind
    for name, scaler in of_kind("HorizontalPodAutoscaler").items():
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
    for name in PARTS:
        template = of_kind("Deployment")[name]["spec"]["template"]
        assert template["metadata"]["annotations"]["linkerd.io/inject"] == "enabled"
        selected = {"app.kubernetes.io/name": name}
        assert template["metadata"]["labels"] == selected
        assert of_kind("PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"] == selected
    assert {job.name.partition(".")[0] for job in JOBS} == {*PARTS, "envoy"}


def test_ports_of_kubernetes_agree() -> None:
    for name, pod in pods().items():
        if name not in PARTS:
            continue
        container = pod["containers"][0]
        environment = {each["name"]: each["value"] for each in container["env"]}
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert environment[f"EMBARK_{name.upper()}_METRICS"] == f"0.0.0.0:{ports['metrics']}"
        template = of_kind("Deployment")[name]["spec"]["template"]
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
        inwards = {rule["port"] for each in of_kind("NetworkPolicy")[name]["spec"]["ingress"] for rule in each["ports"]}
        assert set(ports.values()) <= inwards
        if "grpc" in ports:
            assert environment[f"EMBARK_{name.upper()}_ADDRESS"] == f"0.0.0.0:{ports['grpc']}"
            assert container["readinessProbe"]["grpc"]["port"] == ports["grpc"]
            assert of_kind("Service")[name]["spec"]["ports"][0]["port"] == ports["grpc"]
        if name == "kfc":
            retina = of_kind("Service")["retina"]["spec"]["ports"][0]["port"]
            assert environment["EMBARK_RETINA_ADDRESS"] == f"retina:{retina}"
        drain = float(environment.get("EMBARK_DRAIN_SECONDS", "0"))
        assert pod["terminationGracePeriodSeconds"] > drain + 20


def test_ports_of_compose_agree() -> None:
    envoy = yaml.safe_load((DEPLOY / "envoy" / "envoy.yaml").read_text())["static_resources"]
    listening = {each["name"]: each["address"]["socket_address"]["port_value"] for each in envoy["listeners"]}
    behind = {}
    for cluster in envoy["clusters"]:
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        place = endpoint["endpoint"]["address"]["socket_address"]
        behind[place["address"]] = place["port_value"]
    services = ours()
    for name in ("embark", "retina"):
        assert services[name]["environment"][f"EMBARK_{name.upper()}_ADDRESS"] == f"0.0.0.0:{behind[name]}"
    assert services["kfc"]["environment"]["EMBARK_RETINA_ADDRESS"] == f"envoy:{listening['retina']}"
    assert COMPOSE["services"]["envoy"]["ports"] == [f"127.0.0.1:{listening['embark']}:{listening['embark']}"]
    for name in PARTS:
        port = services[name]["environment"][f"EMBARK_{name.upper()}_METRICS"].rpartition(":")[2]
        assert f"127.0.0.1:{port}/health" in services[name]["healthcheck"]["test"][-1]
    for job, variables in (("envoy", ("embark_port", "retina_port")), ("kfc", ("retina_port",))):
        text = (DEPLOY / "nomad" / f"{job}.nomad.hcl").read_text()
        for name in variables:
            default = re.search(rf'variable "{name}" {{\n +type += number\n +default += (\d+)', text)
            assert default is not None
            assert int(default[1]) == listening[name.partition("_")[0]]


def test_nothing_runs_as_root() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == [f"{UID}:{UID}"]
    assert dockerfile.rindex("USER") > dockerfile.rindex("FROM")
    for name, service in ours().items():
        assert service["user"] == f"{UID}:{UID}", name
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
    for name, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == UID
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_the_images_feature_repo_is_what_init_writes(tmp_path: Path) -> None:
    write_repo(
        tmp_path / "repo",
        kafka="kafka:9092",
        cassandra_hosts=["cassandra"],
        registry="${REGISTRY_URL}",
        history="s3://embark/history",
        s3_endpoint="http://s3:8333",
    )
    for name in FILES:
        assert (DEPLOY / "repo" / name).read_text() == (tmp_path / "repo" / name).read_text(), (
            f"deploy/repo/{name} is stale: remove the folder and run the command in docs/deploy.md"
        )


def test_every_metric_that_scaling_asks_for_is_told() -> None:
    sources = "".join(
        p.read_text() for folder in ("encoders", "materializer", "serving") for p in (ROOT / folder).glob("*.py")
    )
    adapter = (DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text()
    asked = set(re.findall(r"seriesQuery: (\w+)", adapter))
    for job in JOBS:
        asked |= set(re.findall(r"\b((?:embark|kfc)_\w+)\b", "".join(re.findall(r"query  = (.*)", job.read_text()))))
    assert len(asked) == 4
    for name in asked:
        assert f'"{name.removesuffix("_bucket")}"' in sources, name
    made = set(re.findall(r"name: \{as: (\w+)\}", adapter)) | asked
    for scaler in of_kind("HorizontalPodAutoscaler").values():
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] != "Resource":
                assert metric[metric["type"].lower()]["metric"]["name"] in made
