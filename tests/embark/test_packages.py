from pathlib import Path

import pytest

from embark.packages import PACKAGES, ShadowedPackage, check_packages


def test_the_packages_of_this_project_are_its_own() -> None:
    check_packages()


def test_an_intruder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShadowedPackage, match=PACKAGES[0]):
        check_packages(tmp_path)
