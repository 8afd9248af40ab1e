"""Java for Spark out of Debian's package: unpacked on its own, and what is said where it cannot be had."""

import subprocess
from pathlib import Path
from shutil import which

import pytest

from embark.servers.debian_java import PACKAGE, NoJava, _downloaded, _unpack, java_home


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package like Debian's: its settings are links into /etc."""
    if which("dpkg-deb") is None:
        pytest.skip("dpkg-deb makes the package that is unpacked here")
    root = tmp_path / "made"
    lib = root / "usr/lib/jvm/java-17-openjdk-x/lib"
    lib.mkdir(parents=True)
    (root / "etc/java-17-openjdk").mkdir(parents=True)
    (root / "etc/java-17-openjdk/jvm.cfg").write_text("-server KNOWN")
    (lib / "jvm.cfg").symlink_to("/etc/java-17-openjdk/jvm.cfg")
    (lib / "cacerts").symlink_to("/etc/ssl/certs/java/cacerts")  # of another package
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {PACKAGE}\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.com>\nDescription: none\n"
    )
    subprocess.run(["dpkg-deb", "--build", str(root), str(tmp_path / "java.deb")], check=True, capture_output=True)
    return tmp_path / "java.deb"


def test_settings_lie_in_the_unpacked_tree_wherever_it_is_moved(package: Path, tmp_path: Path) -> None:
    _unpack(package, tmp_path / "unpacked")
    (tmp_path / "unpacked").rename(tmp_path / "java")
    lib = tmp_path / "java/usr/lib/jvm/java-17-openjdk-x/lib"
    assert (lib / "jvm.cfg").read_text() == "-server KNOWN"
    assert (lib / "jvm.cfg").resolve().is_relative_to(tmp_path / "java")
    assert str((lib / "cacerts").readlink()) == "/etc/ssl/certs/java/cacerts"


def test_a_machine_that_is_no_debian_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoJava, match="no apt-get here: Java for Spark is Debian's openjdk-17-jre-headless"):
        java_home(tmp_path / "java")


def test_lists_of_our_own_are_fetched_where_the_machine_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An apt that knows no package until it was asked to update, into a folder that it was given."""
    apt = tmp_path / "apt-get"
    apt.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/asked\n'
        'for word in "$@"; do last=$word; done\n'
        'if [ "$1" = download ]; then echo "E: Unable to locate package" >&2; exit 100; fi\n'
        'if [ "$last" != update ]; then : > "${last}_17_all.deb"; fi\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "place").mkdir()
    assert _downloaded(tmp_path / "place").name == f"{PACKAGE}_17_all.deb"
    first, second, third = (tmp_path / "asked").read_text().splitlines()
    assert first == f"download {PACKAGE}"
    assert second.endswith("update")
    assert f"Dir::State::Lists={tmp_path}/place/lists" in second
    assert third.endswith(f"download {PACKAGE}")


def test_a_failed_download_is_one_line_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Could not connect' >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(NoJava, match=r"Java for Spark cannot be had: `apt-get .*` says E: Could not connect"):
        java_home(tmp_path / "java")
