"""What the documentation tells to run can be run: every command is one, and has the options that are named."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from embark.cli import cli
from embark.command_map import SECTIONS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"(?:uv run )?(?<![\w/-])embark ([a-z][^`\n]*)")
BENCHMARK = re.compile(r"python -m benchmarks\.(\w+)")
ENDS = {"|", ">", ">>", "<", "&&", ";", "#", "…"}


def told(page: Path) -> Iterator[str]:
    """The commands in a page's blocks of code and in its code spans, without `embark`."""
    text = page.read_text()
    blocks = re.findall(r"^```(?:bash|sh|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for line in [*lines, *spans]:
        found = re.match(r"(?:[A-Z_]+=\S+ )*(?:uv run )?embark ([a-z].*)", line)
        if found:
            yield found[1]


def parsed(command: click.Command, words: list[str]) -> None:
    """Raises:
    click.UsageError: there is no such command or option, or an option lacks its value.
    """
    context = click.Context(command, info_name="embark", allow_interspersed_args=not isinstance(command, click.Group))
    parser = command.make_parser(context)
    _, rest, _ = parser.parse_args(list(words))
    if isinstance(command, click.Group) and rest:
        name, below, rest = command.resolve_command(context, rest)
        assert below is not None, name
        parsed(below, rest)


EXAMPLES = [(page, line) for page in PAGES for line in dict.fromkeys(told(page))]


def test_there_is_something_to_look_at() -> None:
    assert len(EXAMPLES) > 60
    assert len({page for page, _ in EXAMPLES}) > 8


@pytest.mark.parametrize(("page", "line"), EXAMPLES, ids=[f"{page.name}: {line[:60]}" for page, line in EXAMPLES])
def test_every_command_in_the_documentation_is_one(page: Path, line: str) -> None:
    words = list(takewhile(lambda word: word not in ENDS, shlex.split(line, comments=True)))
    try:
        parsed(cli, words)
    except click.UsageError as error:
        pytest.fail(f"{page.name}: embark {line}: {error.message}")


def test_the_benchmarks_that_are_named_are_there() -> None:
    named = {name for page in [*PAGES, ROOT / "benchmarks/RESULTS.md"] for name in BENCHMARK.findall(page.read_text())}
    assert {"duplicates", "plan"} <= named
    assert {name for name in named if not (ROOT / "benchmarks" / f"{name}.py").exists()} - {"NAME"} == set()


def commands(command: click.Command, path: str = "embark") -> Iterator[tuple[str, click.Command]]:
    for name, below in getattr(command, "commands", {}).items():
        yield f"{path} {name}", below
        yield from commands(below, f"{path} {name}")


def test_every_command_stands_in_the_map_once_and_has_an_example_that_is_one() -> None:
    placed = [name for section in SECTIONS.values() for name in section]
    assert sorted(placed) == sorted(cli.commands)
    for path, command in commands(cli):
        examples = re.findall(rf"{path}[^\n]*", command.help or "")
        assert examples, path
        for example in examples:
            words = shlex.split(re.split(r"\s{3,}|\)\"|`", example)[0], comments=True)[1:]
            parsed(cli, list(takewhile(lambda word: word not in ENDS, words)))


def test_every_option_says_what_it_does() -> None:
    for path, command in commands(cli):
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, f"{path} {option.opts[0]}"


def test_every_command_that_answers_something_prints_json() -> None:
    endless = {"serve", "materialize", "retina", "feature-server", "console"}  # servers: EMBARK_LOG_FORMAT=json
    for path, command in commands(cli):
        if not isinstance(command, click.Group) and path.split()[1] not in {*endless, "completion"}:
            assert "--json" in {flag for option in command.params for flag in option.opts}, path


def test_the_help_is_a_map() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).stdout
    for section, names in SECTIONS.items():
        assert f"{section}:" in shown
        for name, text in names.items():
            assert re.search(rf"^  {name} +{re.escape(text)}", shown, re.MULTILINE), name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str) -> None:
    script = CliRunner().invoke(cli, ["completion", shell])
    assert script.exit_code == 0
    assert f"_EMBARK_COMPLETE={shell}_complete" in script.stdout
    environment = {"_EMBARK_COMPLETE": f"{shell}_complete", "COMP_WORDS": "embark dupl", "COMP_CWORD": "1"}
    if shell == "fish":
        environment["COMP_CWORD"] = "dupl"
    found = CliRunner().invoke(cli, [], prog_name="embark", env=environment)
    assert "duplicates" in found.stdout


def test_the_site_has_every_page_and_no_page_twice() -> None:
    def pages(nav: object) -> Iterator[str]:
        if isinstance(nav, str):
            yield nav
        for below in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
            yield from pages(below)

    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(named) == len(set(named))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(named)
