"""`embark feature-server`: Feast's own server app over EmbArk's store."""

import logging

import uvicorn
from feast.feature_server import get_app

from embark.repo import check_repo
from embark.settings import Settings
from feature_repo.session import connect
from serving.feature_store import EmbArkFeatureStore
from serving.transport import check_private

logger = logging.getLogger(__name__)

REGISTRY_SECONDS = 2  # as EmbArk: a new encoder is served soon after `feast apply`


def run_feature_server(settings: Settings, address: str) -> None:
    """Feast's feature server, until a signal stops it.

    Args:
        address: `host:port`.

    Raises:
        TransportRefused: a public address, in plain text.
        StoreUnavailable: the online store cannot be reached.
        NoRepo: there is no feature repo.
    """
    check_private(address, None, plaintext=settings.plaintext)
    check_repo(settings.repo)
    store = EmbArkFeatureStore(repo_path=str(settings.repo.resolve()))
    connect(store)
    host, _, port = address.rpartition(":")
    try:
        uvicorn.run(
            get_app(store, REGISTRY_SECONDS),
            host=host.strip("[]"),
            port=int(port),
            log_level=settings.log_level.lower(),
            log_config=None,  # ours
            access_log=False,
        )
    finally:
        store.close_requests()
