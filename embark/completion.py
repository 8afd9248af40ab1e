"""`embark completion`: what has a shell complete commands and options."""

import click
from click.shell_completion import get_completion_class

VARIABLE = "_EMBARK_COMPLETE"  # that click looks at


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what has SHELL complete commands and options.

    \b
    eval "$(embark completion bash)"          in ~/.bashrc; zsh likewise
    embark completion fish | source           in config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    click.echo(kind(context.find_root().command, {}, "embark", VARIABLE).source())
