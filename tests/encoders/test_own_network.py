import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.loading import load_encoder
from encoders.spec import EncoderSpec, SpecError
from encoders.weights import check_unchanged, pin_weights
from tests.encoders.families import OWN, OWN_SOURCE, contents, loaded, own_module, pinned, silent


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    with own_module(tmp_path) as path:
        yield path


def test_a_network_of_a_teams_own_embeds(module: Path) -> None:
    spec = pinned(OWN)
    assert spec.pinned.startswith("seeded:3;module:team_networks#")
    assert not spec.pretrained
    encoder = loaded(spec)
    assert encoder.spec == spec
    vectors = encoder.encode([encoder.prepare(content) for content in contents(spec)])
    assert vectors.shape == (5, 6)
    assert vectors.dtype == np.float32
    assert len(np.unique(vectors, axis=0)) == 5


def test_an_encoder_of_a_teams_own_embeds(module: Path) -> None:
    spec = pinned(replace(OWN, network="python:team_networks:lengths", dim=2, weights="DEFAULT"))
    assert spec.pinned.startswith("DEFAULT;module:team_networks#")
    encoder = loaded(spec)
    assert encoder.encode([encoder.prepare(b"abc"), encoder.prepare(b"")]).tolist() == [[3, 1], [0, 1]]


def test_its_weights_may_lie_in_a_file(module: Path, tmp_path: Path) -> None:
    state = torch.nn.Linear(6, 6).state_dict()
    torch.save(state, tmp_path / "own.pth")
    spec = pinned(replace(OWN, weights=str(tmp_path / "own.pth")))
    assert spec.pinned.startswith(f"file:{tmp_path / 'own.pth'}#")
    assert spec.pretrained
    encoder = loaded(spec)
    prepared = encoder.prepare(contents(spec)[0])
    expected = state["weight"] @ prepared + state["bias"]
    torch.testing.assert_close(torch.from_numpy(encoder.encode([prepared])[0]), expected)


@pytest.mark.parametrize("allowed", [[], ["team"], ["team_networks.below"], ["other"]])
def test_a_module_that_is_not_allowed_is_not_run_and_the_setting_is_named(allowed: list[str], tmp_path: Path) -> None:
    with own_module(tmp_path, "raise SystemExit('it ran')"):
        for act in (
            lambda: pin_weights(OWN, silent, allowed_modules=allowed),
            lambda: load_encoder(OWN.pin("seeded:3;module:team_networks#00"), "cpu", allowed_modules=allowed),
        ):
            with pytest.raises(SpecError, match=r"setting allowed_modules, as EMBARK_ALLOWED_MODULES=.*team_networks"):
                act()


def test_modules_below_an_allowed_one_are_allowed(tmp_path: Path) -> None:
    package = tmp_path / "team_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "networks.py").write_text(OWN_SOURCE)
    spec = replace(OWN, network="python:team_package.networks:colours")
    sys.path.append(str(tmp_path))
    try:
        assert pin_weights(spec, silent, allowed_modules=["team_package"]).pinned
    finally:
        sys.path.remove(str(tmp_path))


def test_source_that_has_changed_is_not_run(module: Path) -> None:
    spec = pinned(OWN)
    check_unchanged(spec)
    module.write_text("raise SystemExit('it ran')")
    with pytest.raises(SpecError, match=r"team_networks has digest .* was pinned.*version v2"):
        loaded(spec)
    with pytest.raises(SpecError, match="version v2"):
        check_unchanged(spec)


def test_what_runs_is_what_was_read_even_where_an_older_one_was_imported(module: Path) -> None:
    pinned(OWN)
    module.write_text(OWN_SOURCE.replace("pixels.mean(0)", "pixels.mean(0) * 0"))
    encoder = loaded(replace(OWN, version="v2"))
    assert encoder.prepare(contents(OWN)[0])[:3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "python:team_networks:nothing"}, r"returned a int: allowed are an object with prepare"),
        ({"network": "python:team_networks:fails"}, "RuntimeError: no such licence"),
        ({"network": "python:team_networks:absent"}, "absent"),
        ({"network": "python:team_networks.deeper:colours"}, "no module 'team_networks.deeper'"),
        (
            {"network": "python:team_networks:lengths", "dim": 3, "weights": "DEFAULT"},
            r"answered \(1, 2\), not \(1, 3\)",
        ),
        ({"network": "python:team_networks:lengths", "dim": 2}, "whose weights are its own: DEFAULT"),
        ({"weights": "no/such/file.pth"}, "no such file"),
        ({"modality": "text"}, "cannot embed a first input: UnidentifiedImageError"),
    ],
)
def test_a_factory_that_does_not_do_says_why(changed: dict[str, object], message: str, module: Path) -> None:
    spec: EncoderSpec = replace(OWN, **changed)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=message):
        pinned(spec)
