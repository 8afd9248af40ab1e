"""`embark --help` as a map: commands stand by what one wants to do, and each belongs somewhere."""

import click

SECTIONS = {
    "See it work": {
        "demo": "all of it, on real servers that it starts and stops",
        "photographs": "serve some pictures to look up",
    },
    "Local servers": {
        "up": "start a real Kafka and a real Cassandra",
        "status": "which run, and where",
        "down": "stop them; their data stays",
    },
    "Register encoders": {
        "init": "write a feature repo of your own",
        "apply": "register the encoders of a feature repo",
        "encoders": "what is registered, where it runs, how fast",
    },
    "Run the parts": {
        "serve": "EmbArk: answers look-ups",
        "materialize": "KFC: embeds what look-ups missed",
        "retina": "Retina: downloads, decodes, embeds",
        "feature-server": "Feast's own server over EmbArk's store",
        "token": "make a token for a caller",
    },
    "Ask": {
        "lookup": "look keys up",
        "backfill": "ask for many keys in advance",
        "encode": "embed files, URLs or texts without any server",
    },
    "Change": {
        "reembed": "compute embeddings anew, in place",
        "invalidate": "remove keys",
        "migrate": "move from one version of an encoder to another",
        "oov": "the embedding that misses of a view are answered with",
    },
    "Keep house": {
        "console": "the state of it all as a web page",
        "dead-letters": "list, retry and purge what was given up",
        "tables": "the tables in Cassandra: used, old, orphaned",
        "compact": "few large files of history out of many small ones",
        "duplicates": "group items that are the same, or near",
        "plan": "size an archive: machines, costs, hit rates",
    },
    "Learn from clicks": {
        "train": "the click-through-rate model",
        "evaluate": "what it is worth",
        "export": "make encoders of its networks",
        "rank": "rank candidates with it",
    },
    "This command line": {"completion": "have a shell complete it"},
}


class MappedGroup(click.Group):
    """A group whose help has a section for each purpose."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, text in commands.items() if name in self.commands])
