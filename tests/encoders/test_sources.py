"""What may be read beside the web: only what was allowed, and nothing that leads out of it."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from encoders.encoder import Blocked, FetchError, NotFound, ServerFailed, TooLarge
from encoders.fetch import Fetcher
from encoders.keys import canonical_key
from encoders.sources import Source, sources
from encoders.spec import EncoderSpec
from tests.encoders.web import LOOPBACK, redirect_to, serving

IMAGE = EncoderSpec(name="i", version="v1", modality="image", dim=4, network="torchvision:resnet18")


def fetch(key: str, allowed: dict[str, Source], **settings: Any) -> bytes:
    """As the service does: the canonical key is what is fetched."""

    async def run() -> bytes:
        async with Fetcher(allowed_networks=LOOPBACK, sources=allowed, max_bytes=1000, **settings) as fetcher:
            return await fetcher.fetch(canonical_key(IMAGE, key))

    return asyncio.run(run())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that may be read, beside a file that may not."""
    root = tmp_path / "pictures"
    (root / "of cats").mkdir(parents=True)
    (root / "of cats" / "a%.jpg").write_bytes(b"cat")
    (root / "large.jpg").write_bytes(bytes(1001))
    (root / "link.jpg").symlink_to(tmp_path / "secret.txt")
    (root / "inside.jpg").symlink_to(root / "large.jpg")
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.jpg")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "pictures-of-others").mkdir()
    (tmp_path / "pictures-of-others" / "b.jpg").write_bytes(b"other")
    return root


@pytest.mark.parametrize("key", ["data:,x", "file:///etc/passwd", "s3://bucket/a.jpg"])
def test_nothing_but_the_web_is_read_unless_it_is_allowed(key: str) -> None:
    with pytest.raises(Blocked, match="only http and https"):
        fetch(key, sources())


def test_files_below_a_root_are_read(root: Path) -> None:
    assert fetch(f"file://{root}/of%20cats/a%25.jpg", sources([root.as_uri()])) == b"cat"
    assert fetch(f"file://localhost{root}/x/../of%20cats/a%25.jpg", sources([root.as_uri() + "/"])) == b"cat"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/pictures/../secret.txt", Blocked),
        ("/pictures/%2e%2e/secret.txt", Blocked),
        ("/pictures/..%2fsecret.txt", Blocked),
        ("/pictures/of%20cats%2Fa%25.jpg", Blocked),
        ("/pictures-of-others/b.jpg", Blocked),
        ("/secret.txt", Blocked),
        ("/pictures/link.jpg", Blocked),
        ("/pictures/inside.jpg", Blocked),
        ("/pictures/out/secret.txt", Blocked),
        ("/pictures//large.jpg", Blocked),
        ("/pictures/%00", Blocked),
        ("/pictures", NotFound),
        ("/pictures/of%20cats", NotFound),
        ("/pictures/missing.jpg", NotFound),
        ("/pictures/large.jpg/x", NotFound),
        ("/pictures/pipe.jpg", NotFound),
        ("/pictures/" + "x" * 300, NotFound),
        ("/pictures/large.jpg", TooLarge),
    ],
)
def test_what_leads_out_of_a_root_or_is_no_file_has_a_named_error(
    path: str, expected: type[FetchError], root: Path
) -> None:
    with pytest.raises(expected) as raised:
        fetch(f"file://{root.parent}{path}", sources([root.as_uri()]))
    assert type(raised.value) is expected


def test_data_urls_carry_their_content() -> None:
    allowed = sources(data_urls=True)
    assert fetch("data:image/png;base64,AP8=", allowed) == b"\x00\xff"
    assert fetch("data:,a%00b%20", allowed) == b"a\0b "
    for broken in ("data:;base64,AP8", "data:;base64,A*8="):
        with pytest.raises(NotFound, match="base64"):
            fetch(broken, allowed)
    with pytest.raises(TooLarge):
        fetch("data:," + "x" * 1001, allowed)


def test_the_web_does_not_lead_to_what_lies_beside_it(root: Path) -> None:
    allowed = sources([root.as_uri()], data_urls=True)
    for location in (f"{root.as_uri()}/of%20cats/a%25.jpg", "data:,x", "s3://bucket/a.jpg"):
        with serving({"/a": redirect_to(location)}) as site, pytest.raises(Blocked, match="only http and https"):
            fetch(site.url("/a"), allowed)


@pytest.mark.parametrize("root", ["/srv", "file://host/srv", "http://a.example/", "s3://", "file:///srv/../etc", ""])
def test_a_root_of_another_form_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match=r"root|folder"):
        sources([root])


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that speaks S3, moto's, with some objects."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="shop")
        for name, content in {
            "pictures/a b%.jpg": b"cat",
            "pictures/large.jpg": bytes(1001),
            "secret.txt": b"secret",
            "pictures-of-others/b.jpg": b"other",
        }.items():
            client.put_object(Bucket="shop", Key=name, Body=content)
        yield f"http://{host}:{port}"
        client.close()
        server.stop()


def test_objects_below_a_prefix_are_read_and_no_others(endpoint: str) -> None:
    allowed = sources(["s3://shop/pictures/"], s3_endpoint=endpoint)
    assert fetch("s3://shop/pictures/a%20b%25.jpg", allowed) == b"cat"
    for key, expected in {
        "s3://shop/pictures/large.jpg": TooLarge,
        "s3://shop/pictures/missing.jpg": NotFound,
        "s3://shop/pictures": NotFound,
        "s3://shop/secret.txt": Blocked,
        "s3://shop/pictures/../secret.txt": Blocked,
        "s3://shop/pictures/%2e%2e/secret.txt": Blocked,
        "s3://shop/pictures/..%2fsecret.txt": Blocked,
        "s3://shop/pictures-of-others/b.jpg": Blocked,
        "s3://other/pictures/a.jpg": Blocked,
    }.items():
        with pytest.raises(expected) as raised:
            fetch(key, allowed)
        assert type(raised.value) is expected, key


def test_an_s3_that_does_not_answer_is_asked_again(endpoint: str) -> None:
    with pytest.raises(ServerFailed) as raised:
        fetch("s3://shop/a.jpg", sources(["s3://shop"], s3_endpoint="http://127.0.0.1:1"))
    assert raised.value.retryable
