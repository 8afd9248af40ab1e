"""Feast's registry in a file that is replaced whole: whoever reads it sees what was before a write, or what is after.

    registry:
      path: data/registry.db
      registry_store_type: feature_repo.registry_store.WholeFileRegistryStore

Stock Feast empties the file and writes it anew. Who reads it in between finds no feature service there, or half of one.
"""

import os
import uuid
from typing import Any

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.utils import _utc_now


class WholeFileRegistryStore(FileRegistryStore):  # type: ignore[misc]
    """The store; Feast asks for a name that ends so."""

    _filepath: Any

    def _write_registry(self, registry_proto: Registry) -> None:
        registry_proto.version_id = str(uuid.uuid4())
        registry_proto.last_updated.FromDatetime(_utc_now())
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        beside = self._filepath.with_name(f".{self._filepath.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with beside.open("wb") as file:
                file.write(registry_proto.SerializeToString())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._filepath)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
