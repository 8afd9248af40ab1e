"""A network that this project has never seen: declared in a feature repo of its own, and served by unchanged parts."""

import contextlib
import json
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from embark.child_process import ChildProcess
from embark.encoders import encoders
from embark.repo import write_repo
from embark.servers import LocalServers, free_port
from embark.settings import Settings
from feature_repo.embeddings import Status
from serving.client import ClientError, EmbArkClient

NETWORK = '''
import torch
from torch import nn


class Letters:
    """How often each letter stands in a text, mixed by a matrix."""

    def __init__(self, dim):
        self.network = nn.Linear(26, dim, bias=False)

    def prepare(self, content):
        counts = torch.zeros(26)
        for byte in content.lower():
            if 97 <= byte <= 122:
                counts[byte - 97] += 1
        return counts


def letters(spec):
    return Letters(spec.dim)
'''
CATALOG = """
from encoders.spec import EncoderSpec

KAFKA = "{kafka}"
ENCODERS = [
    EncoderSpec(name="letters", version="v1", modality="text", dim=5, network="python:shop_networks:letters",
                weights="{weights}"),
]
SERVICES = {{}}
"""
VIEW = "letters__v1"
PATIENCE = 240.0


@pytest.mark.servers
@pytest.mark.timeout(600)
def test_a_teams_own_network_is_served_by_one_declaration(servers: LocalServers, tmp_path: Path) -> None:
    matrix = np.arange(5 * 26, dtype=np.float32).reshape(5, 26)
    torch.save({"weight": torch.from_numpy(matrix)}, tmp_path / "letters.pth")
    repo = tmp_path / "repo"
    write_repo(
        repo,
        project=f"t{uuid.uuid4().hex[:8]}",
        keyspace=servers.keyspace,
        kafka=servers.kafka_bootstrap,
        cassandra_hosts=servers.cassandra_hosts,
        cassandra_port=servers.cassandra_port,
    )
    (repo / "shop_networks.py").write_text(NETWORK)
    (repo / "catalog.py").write_text(CATALOG.format(kafka=servers.kafka_bootstrap, weights=tmp_path / "letters.pth"))
    settings = Settings(
        repo=repo,
        embark_address=f"127.0.0.1:{free_port()}",
        retina_address=f"127.0.0.1:{free_port()}",
        device="cpu",
        allowed_modules=["shop_networks"],
    )
    environment = settings.as_environment()

    # 1. one declaration, registered
    command = [sys.executable, "-P", "-m", "embark", "apply", "--json"]
    applied = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert applied.returncode == 0, applied.stderr
    (spec,) = json.loads(applied.stdout)
    assert spec["pinned"].startswith(f"file:{tmp_path / 'letters.pth'}#")

    with ExitStack() as stack:
        for part in ("retina", "materialize", "serve"):
            log = tmp_path / f"{part}.txt"
            stack.enter_context(ChildProcess(part, [part], environment, log, folder=tmp_path))
        client = stack.enter_context(EmbArkClient(settings.embark_address))

        # 2. a text nobody has seen is OOV, and a moment later a HIT
        deadline = time.monotonic() + PATIENCE
        seen = []
        while Status.HIT not in seen:
            assert time.monotonic() < deadline, f"{seen}\n" + "\n".join(p.read_text() for p in tmp_path.glob("*.txt"))
            with contextlib.suppress(ClientError):  # EmbArk starts
                answer = client.lookup(VIEW, ["Abba"])
                seen.append(Status(int(answer.status[0])))
            time.sleep(0.2)
        assert seen[0] == Status.OOV
        assert np.array_equal(answer.vectors[0], 2 * matrix[:, 0] + 2 * matrix[:, 1])

        # 3. the list of encoders says where it runs
        listed = CliRunner().invoke(encoders, ["--json"], obj=settings)
        (row,) = json.loads(listed.stdout)
        assert row["fingerprint"] == spec["fingerprint"]
        assert row["retina"] == {"loaded": True, "device": "cpu", "same": True}
