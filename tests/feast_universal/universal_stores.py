"""What Feast's universal tests run on: one online store, named as the store whose tests are wanted.

Feast imports this module where `FULL_REPO_CONFIGS_MODULE` names it: inside its own test run, where `tests`
is Feast's package and not ours; so it stands alone and reads the environment that the runner (`__main__.py`) sets.
"""

import os

from tests.universal.feature_repos.universal.data_sources.file import FileDataSourceCreator

SETTINGS = {
    "stock": {"type": "cassandra"},
    # Feast's tests expect that a view which is applied anew is empty, and that a row older than its ttl is served; ours
    # keeps tables, and does not serve such rows, unless told otherwise.
    "plugin": {
        "type": "feature_repo.online_store.EmbeddingOnlineStore",
        "drop_removed_tables": True,
        "expire_rows": False,
    },
}

online_store = {
    "hosts": [os.environ["UNIVERSAL_HOST"]],
    "port": int(os.environ["UNIVERSAL_PORT"]),
    "keyspace": os.environ["UNIVERSAL_KEYSPACE"],
    "protocol_version": 4,
    **SETTINGS[os.environ["UNIVERSAL_STORE"]],
}

AVAILABLE_OFFLINE_STORES = [("local", FileDataSourceCreator)]
AVAILABLE_ONLINE_STORES = {os.environ["UNIVERSAL_NAME"]: (online_store, None)}
