"""What `docs/encoders.md` shows can be done."""

import ast
import re
from pathlib import Path
from typing import Any

from encoders.spec import FAMILIES, EncoderSpec

DOCS = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
DECLARATIONS, MODULE = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def test_the_declarations_are_allowed_and_every_family_is_told_of() -> None:
    declared: list[EncoderSpec] = [eval(ast.unparse(each)) for each in ast.parse(DECLARATIONS).body]  # noqa: S307
    assert {spec.family for spec in declared} == {"timm", "sentence-transformers", "checkpoint", "python"}
    for _, form in FAMILIES.values():
        assert f"`{form}" in DOCS.replace("[.<tag>]", ""), form


def test_the_module_embeds() -> None:
    names: dict[str, Any] = {}
    exec(MODULE, names)  # noqa: S102
    spec = EncoderSpec(name="letters", version="v1", modality="text", dim=5, network="python:shop_networks:letters")
    made = names["letters"](spec)
    assert made.network(made.prepare(b"Abba")[None]).shape == (1, 5)
