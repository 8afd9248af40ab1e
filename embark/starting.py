"""Starting the local servers with something to look at: the first start downloads 150 MB of jars."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embark.servers import LocalServers
from embark.servers.java import jar_count

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def start_servers(servers: LocalServers, out: Console, indent: str = "") -> None:
    """Starts the servers, says what is done, and shows the progress of a first download.

    Raises:
        ServersError: see `LocalServers.up`.
    """
    with Progress(*COLUMNS, console=out, transient=True) as progress:
        task = progress.add_task(f"{indent}downloading jars", total=jar_count(), visible=False)

        def arrived(_: str) -> None:
            progress.update(task, advance=1, visible=True)

        servers.up(report=lambda line: out.print(f"{indent}{line}", markup=False), arrived=arrived)
