"""What `feast apply` registers: the Feast objects derived from `catalog.py`."""

from pathlib import Path

import catalog  # Feast puts the repo's folder on the path
from feature_repo.views import HISTORY, feast_objects

globals().update(
    feast_objects(
        catalog.ENCODERS,
        catalog.SERVICES,
        kafka=catalog.KAFKA,
        repo=Path(__file__).parent,
        history=getattr(catalog, "HISTORY", HISTORY),  # a catalog may leave these out
        s3_endpoint=getattr(catalog, "S3_ENDPOINT", ""),
    )
)
