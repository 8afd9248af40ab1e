"""What `feast apply` registers: the Feast objects derived from `catalog.py`."""

from pathlib import Path

from catalog import ENCODERS, HISTORY, KAFKA, S3_ENDPOINT, SERVICES  # Feast puts the repo's folder on the path
from feature_repo.views import feast_objects

globals().update(
    feast_objects(ENCODERS, SERVICES, kafka=KAFKA, repo=Path(__file__).parent, history=HISTORY, s3_endpoint=S3_ENDPOINT)
)
