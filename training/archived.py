"""Archived embeddings as the inputs of a model's parts: read from history, as serving answered them."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from feast import FeatureStore
from numpy.typing import NDArray

from feature_repo.directory import UnknownView
from feature_repo.embeddings import Status
from feature_repo.views import encoder_specs
from training.config import Config, ConfigError
from training.history import Reading, historical_embeddings
from training.impressions import Impressions


@dataclass(frozen=True, slots=True)
class HistoryArchive:
    """Reads the history of a feature store.

    Attributes:
        store: whose offline store holds it.
        reading: which embedding an impression gets (`training.history`).
    """

    store: FeatureStore
    reading: Reading

    @classmethod
    def of(cls, store: FeatureStore, config: Config) -> Self:
        """The archive that a config names views of.

        Raises:
            ConfigError: a view that is not registered, or is one of texts where images are wanted.
        """
        specs = encoder_specs(store, allow_cache=False)
        for name, view in config.views.items():
            if view not in specs:
                raise ConfigError(f"model.{name}: {UnknownView(view, specs)}")
            if specs[view].modality != name:
                raise ConfigError(f"model.{name}={view!r} embeds the {specs[view].modality}")
        return cls(store, config.data.reading)

    def embeddings(self, impressions: Impressions, view: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The distinct vectors (1 + U, D), and the row of each impression, (N,): 0 for every OOV embedding there was.

        Raises:
            ImpressionsError: the view's key, or its logged ids, are missing.
            UnknownIds: logged ids that history does not have.
        """
        history = historical_embeddings(self.store, impressions, [view], self.reading)[view]
        return history.vectors, np.where(history.status == Status.OOV, 0, history.rows).astype(np.int64)
