"""A hook of mkdocs: pages that are made from the code, or stand in files outside of docs/."""

import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from embark.cli import cli
from embark.settings import Settings

ROOT = Path(__file__).parent.parent
COPIED = {
    "index.md": "README.md",
    "about/benchmarks.md": "benchmarks/RESULTS.md",
    "about/changelog.md": "CHANGELOG.md",
    "about/contributing.md": "CONTRIBUTING.md",
    "about/security.md": "SECURITY.md",
}
NOTEBOOKS = {"first-look.md": "examples/first_look.py"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    made = {page: linked((ROOT / file).read_text()) for page, file in COPIED.items()}
    made |= {page: notebook((ROOT / file).read_text()) for page, file in NOTEBOOKS.items()}
    made |= {"reference/commands.md": commands(), "reference/settings.md": settings()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def notebook(text: str) -> str:
    """A notebook in cells (`# %%`) as a page: cells of markdown as they are, those of code in blocks."""
    pieces = []
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        kind, _, content = cell.partition("\n")
        if kind.strip() == "[markdown]":
            pieces.append(re.sub(r"^# ?", "", content.strip(), flags=re.MULTILINE))
        else:
            pieces.append(f"```python\n{content.strip()}\n```")
    return "\n\n".join(pieces) + "\n"


def linked(text: str) -> str:
    """Links into docs/ as the site has them; those to other files of the project are words."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?://|#|[\w-]+\.md)[^)]+\)", r"\1", text)


def commands() -> str:
    """Each command with its help, as the code has it."""
    lines = [
        "# Commands",
        "",
        "As `embark COMMAND --help` tells them. Every command exits with 0 where all went well,",
        "",
    ]
    lines[2] += " 1 where what it was to do did not hold or failed, 2 where it was called wrongly, 130 after Ctrl-C."
    lines[2] += " With `--json` the answer goes to standard output and all else to standard error; servers log as JSON"
    lines[2] += " with `EMBARK_LOG_FORMAT=json`. `embark completion SHELL` has a shell complete commands and options."
    for path, command in walked(cli, ("embark",)):
        context = click.Context(command, info_name=" ".join(path))
        context.max_content_width = 100
        lines += [f"## `{' '.join(path)}`", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def walked(command: click.Command, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    """A command and those below it."""
    found = [(path, command)]
    for name, below in sorted(getattr(command, "commands", {}).items()):
        if not below.hidden:
            found += walked(below, (*path, name))
    return found


def settings() -> str:
    """A row for each setting."""
    lines = [
        "# Settings",
        "",
        "From the environment, or without `EMBARK_`, in lower case, a line of `embark.toml`.",
        "",
    ]
    lines += ["| setting | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default: Any = field.get_default(call_default_factory=True)
        shown = "" if default in (None, "", [], {}) else f"`{default}`"
        lines.append(f"| `EMBARK_{name.upper()}` | {shown} | {described(field.description)} |")
    return "\n".join(lines)


def described(text: str | None) -> str:
    return (text or "").replace("|", "\\|")
