"""Which of two processes runs which tests, and in which order."""

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

SERVERS = "tests/integration/"
OWN_SERVERS = ("test_readme.py", "test_online_store_security.py")  # of them; both last for minutes


def scope(test: str) -> str:
    """What runs in one process, given a test's id: all that needs the shared servers, or a file.

    The servers are started once, and so is what the tests of a file share: a Cassandra with TLS, processes, networks.
    """
    path = test.partition("::")[0]
    return SERVERS if path.startswith(SERVERS) and PurePath(path).name not in OWN_SERVERS else path


def turn(test: str) -> int:
    """What lasts longest comes first, so that neither process is left with it at the end while the other idles."""
    whole = scope(test)
    return 0 if whole == SERVERS else 1 if whole.startswith(SERVERS) else 2 if whole.count("/") == 1 else 3


class ByScope(LoadScopeScheduling):
    """xdist's own groups are lost in pytest 9.2, whose ids of tests cannot be changed."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)
