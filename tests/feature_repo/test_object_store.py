"""History on object stores: on an S3 of its own, moto's, which answers over HTTP, and on whatever fsspec knows."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView
from feast.credentials import ConnectionRef
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from pyarrow import fs

from feature_repo.offline.compaction import compact
from feature_repo.offline.filesystems import open_filesystem
from feature_repo.offline.folder import Folder
from feature_repo.offline.history import PartsHistory
from feature_repo.offline.parts import SCHEMA_PART, folder_of
from tests.feature_repo.history import Row, apply, at, entity_rows, item_view, open_store, push

BUCKET = "histories"
LATER = 1e6  # seconds, past any grace period
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True, slots=True)
class S3:
    """A server that speaks S3; `client` is boto3's, since what lies there shall not be told by the code under test."""

    endpoint: str
    client: object


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket=BUCKET)
        yield S3(f"http://{host}:{port}", client)
        client.close()
        server.stop()


@pytest.fixture
def made(tmp_path: Path, s3: S3) -> tuple[FeatureStore, FeatureView]:
    store = open_store(tmp_path)
    items = view_on(s3, tmp_path)
    apply(store, items)
    return store, items[1]


def view_on(s3: S3, folder: Path) -> tuple[list[Entity], FeatureView]:
    return item_view(f"s3://{BUCKET}/{folder.name}", s3_endpoint=s3.endpoint)


def objects(s3: S3, folder: Path) -> dict[str, str]:
    """Name → etag of each object of a history."""
    listed = s3.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder.name}/items/")  # type: ignore[attr-defined]
    return {each["Key"].rpartition("/")[2]: each["ETag"] for each in listed.get("Contents", [])}


def numbers(store: FeatureStore, asked: list[tuple[object, ...]]) -> list[int | None]:
    answer = store.get_historical_features(entity_rows(("item",), asked), ["items:number", "items:vector"]).to_arrow()
    found: list[int | None] = answer["number"].to_pylist()
    assert answer["vector"].to_pylist() == [None if n is None else [float(n), 0.5] for n in found]
    return found


def test_a_push_is_one_object_put_whole(made: tuple[FeatureStore, FeatureView], s3: S3, tmp_path: Path) -> None:
    store, view = made
    assert list(objects(s3, tmp_path)) == [SCHEMA_PART]
    for i in range(3):
        push(store, view, [Row((f"k{i}",), i, i, i)])
    etags = objects(s3, tmp_path)
    assert len(etags) == 4
    assert not any("-" in etag for etag in etags.values())  # a dash: uploaded in pieces


def test_a_large_part_is_uploaded_in_pieces_and_read_whole(s3: S3, tmp_path: Path) -> None:
    table = pa.table({"bytes": [os.urandom(1 << 20) for _ in range(12)]})
    folder = Folder.at(f"s3://{BUCKET}/{tmp_path.name}/items", s3_endpoint=s3.endpoint)
    folder.write("large.parquet", table)
    assert "-" in objects(s3, tmp_path)["large.parquet"]
    assert pq.read_table(folder.file("large.parquet"), filesystem=folder.filesystem).equals(table)


def test_the_join_finds_on_s3_what_it_finds_on_a_disk(
    made: tuple[FeatureStore, FeatureView], s3: S3, tmp_path: Path
) -> None:
    store, view = made
    asked: list[tuple[object, ...]] = [("k1", -1), ("k1", 1), ("k1", 7), ("k2", 9), ("none", 9), ("k1", 2)]
    assert numbers(store, asked) == [None] * 6  # nothing was pushed yet
    disk = open_store(tmp_path)
    local = item_view(tmp_path, "disk")
    apply(disk, local)
    for i in range(8):
        rows = [Row((f"k{i % 3}",), i, i, i), Row(("k1",), 1, i, 10 + i)]
        push(store, view, rows)
        push(disk, local[1], rows)
    there = disk.get_historical_features(entity_rows(("item",), asked), ["disk:number"]).to_arrow()["number"]
    assert numbers(store, asked) == there.to_pylist() == [None, 17, 7, 5, None, 17]


def test_history_on_s3_is_compacted_and_materialized(
    made: tuple[FeatureStore, FeatureView], s3: S3, tmp_path: Path
) -> None:
    store, view = made
    for i in range(6):
        push(store, view, [Row((f"k{i % 2}",), i, i, i)])
    done = compact(view, grace_seconds=60.0, target_bytes=1 << 20)
    assert (done.parts_before, done.parts_after, done.rows, done.waiting) == (6, 1, 6, 6)
    assert len(objects(s3, tmp_path)) == 8  # the schema, the six, and what was made of them
    assert numbers(store, [("k0", 9), ("k1", 3)]) == [4, 3]
    offline_store = store._get_provider().offline_store
    source = (store.config, view.batch_source, ["item"], ["number"], "event_timestamp", "created_timestamp")
    pulled = offline_store.pull_all_from_table_or_query(*source).to_df()
    assert sorted(pulled["number"]) == list(range(6))  # each row once, though it is there twice
    assert compact(view, grace_seconds=0.0, target_bytes=1 << 20, clock=lambda: LATER * 1e4).removed == 6
    assert len([name for name in objects(s3, tmp_path) if name]) == 2
    latest = offline_store.pull_latest_from_table_or_query(*source, at(0), at(4)).to_df()
    assert dict(zip(latest["item"], latest["number"], strict=True)) == {"k0": 4, "k1": 3}
    store.materialize(at(0), at(9))
    online = store.get_online_features(["items:number"], [{"item": "k0"}, {"item": "k1"}]).to_dict()
    assert online["number"] == [4, 5]


READER = """
import sys
from pathlib import Path
from tests.feature_repo.history import entity_rows, open_store
store = open_store(Path(sys.argv[1]))
print("ready", flush=True)
for line in sys.stdin:  # how many rows are durable
    rows = [(f"k{i}", 10**6) for i in range(int(line))]
    found = store.get_historical_features(entity_rows(("item",), rows), ["items:number"]).to_arrow()
    print(sum(n == i for i, n in enumerate(found["number"].to_pylist())), flush=True)
"""


def test_two_readers_of_their_own_see_each_push_beside_compactions(
    made: tuple[FeatureStore, FeatureView], tmp_path: Path
) -> None:
    store, view = made
    command = [sys.executable, "-W", "ignore", "-c", READER, str(tmp_path)]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(2)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        pushed = 0
        for turn in range(6):
            for _ in range(3):
                push(store, view, [Row((f"k{pushed}",), pushed, pushed, pushed)])
                pushed += 1
            for reader in readers:
                assert reader.stdin is not None
                reader.stdin.write(f"{pushed}\n")
            # Beside their reading: what was replaced two turns before goes.
            compact(view, grace_seconds=0.0 if turn % 3 == 2 else 60.0, target_bytes=1 << 20)
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == f"{pushed}\n"
    finally:
        for reader in readers:
            reader.communicate(timeout=30)


def test_two_compactions_at_once_leave_each_row_once(made: tuple[FeatureStore, FeatureView]) -> None:
    store, view = made
    for i in range(8):
        push(store, view, [Row((f"k{i}",), i, i, i)])
    threads = [
        threading.Thread(target=compact, args=(view,), kwargs={"grace_seconds": 60.0, "target_bytes": 1 << 20})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(store, [(f"k{i}", 99) for i in range(8)]) == list(range(8))
    compact(view, grace_seconds=0.0, target_bytes=1 << 20, clock=lambda: LATER * 1e4)
    folder = folder_of(view.batch_source)
    assert folder is not None
    pull = store._get_provider().offline_store.pull_all_from_table_or_query
    rows = pull(store.config, view.batch_source, ["item"], ["number"], "event_timestamp", "created_timestamp").to_df()
    assert sorted(rows["number"]) == list(range(8))


def test_an_upload_that_was_cut_off_is_no_part(made: tuple[FeatureStore, FeatureView], s3: S3, tmp_path: Path) -> None:
    store, view = made
    push(store, view, [Row(("k0",), 0, 0, 7)])
    place = {"Bucket": BUCKET, "Key": f"{tmp_path.name}/items/20260101-20260101_torn.parquet"}
    upload = s3.client.create_multipart_upload(**place)["UploadId"]  # type: ignore[attr-defined]
    s3.client.upload_part(**place, UploadId=upload, PartNumber=1, Body=b"torn")  # type: ignore[attr-defined]
    assert len(objects(s3, tmp_path)) == 2
    assert numbers(store, [("k0", 9)]) == [7]


def test_a_push_that_s3_refuses_raises(tmp_path: Path, s3: S3) -> None:
    store = open_store(tmp_path)
    _, view = item_view("s3://no-such-bucket/history", s3_endpoint=s3.endpoint)
    with pytest.raises(OSError, match="no-such-bucket"):
        push(store, view, [Row(("k0",), 0, 0, 7)])


def test_a_sources_connection_brings_its_credentials(tmp_path: Path, s3: S3) -> None:
    from_environment = ConnectionRef(provider="env", name="AWS_")
    opened = []
    for connection in (None, from_environment):
        _, view = item_view("s3://bucket", s3_endpoint=s3.endpoint, connection_ref=connection)
        folder = folder_of(view.batch_source)
        assert folder is not None
        opened.append(folder.filesystem)
    expected = fs.S3FileSystem(
        endpoint_override=s3.endpoint,
        access_key=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        secret_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        region=ENVIRONMENT["AWS_DEFAULT_REGION"],
        allow_delayed_open=True,
    )
    assert [each.equals(expected) for each in opened] == [False, True]


class Vanishing(MemoryFileSystem):  # type: ignore[misc]
    """Fails as pyarrow's S3 does where an object goes between being opened and being read, or just fails."""

    goes = True

    def _open(self, path: str, *args: object, **kwargs: object) -> object:
        if self.goes:
            self.rm(path)
        raise OSError("AWS Error INTERNAL_FAILURE during GetObject operation")


@pytest.mark.parametrize(("goes", "error"), [(True, "FileNotFoundError"), (False, "OSError")])
def test_a_part_that_goes_while_it_is_read_is_told_from_a_store_that_fails(
    tmp_path: Path, goes: bool, error: str
) -> None:
    table = pa.table({"a": [1]})
    whole = Folder.at(f"memory://{tmp_path.name}")
    whole.write("a.parquet", table)
    vanishing = Vanishing(skip_instance_cache=True)
    vanishing.goes = goes
    folder = Folder(fs.PyFileSystem(fs.FSSpecHandler(vanishing)), whole.path, False)
    with pytest.raises(OSError, match=r"went away|INTERNAL_FAILURE") as raised:
        PartsHistory(folder, table.schema).index(["a"], [])
    assert raised.type.__name__ == error


def test_what_others_wrote_is_listed_at_once_whatever_fsspec_keeps() -> None:
    filesystem, path = open_filesystem("memory://listed/history/")
    assert path == "/listed/history"
    assert filesystem.handler.fs.storage_options["use_listings_cache"] is False
    folder = Folder.at("memory://listed/history/")
    folder.write("a.parquet", pa.table({"a": [1]}))
    assert Folder.at("memory://listed/history").names() == ["a.parquet"]


@pytest.mark.parametrize("path", ["{}/history", "file://{}/history", "file://{}/history/", "{}/history/"])
def test_a_path_on_a_disk_may_be_a_uri(tmp_path: Path, path: str) -> None:
    folder = Folder.at(path.format(tmp_path))
    assert (folder.local, folder.path) == (True, f"{tmp_path}/history")
