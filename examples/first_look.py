# %% [markdown]
# # A first look, from Python
#
# From a feature repo to look-ups, history and near items, with plots. This file is a notebook: editors that know
# cells (`# %%`) run it piece by piece, and `python examples/first_look.py` all at once.
#
# It needs what the [tutorial](tutorial.md) starts in its step 2: servers, registered encoders, Retina, KFC, EmbArk
# and the photographs.

# %%
import time
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from embark.settings import Settings
from feature_repo.embeddings import Status
from feature_repo.views import encoder_specs
from serving.client import EmbArkClient
from serving.feature_store import EmbArkFeatureStore
from training.history import historical_embeddings
from training.impressions import read_impressions

settings = Settings()  # EMBARK_REPO, EMBARK_EMBARK_ADDRESS, or embark.toml
SITE = "http://127.0.0.1:8000"  # of `embark photographs`
IMAGES, TEXTS = "mobilenet_v3_small__v1", "text_lstm__v1"

# %% [markdown]
# ## What is registered
#
# Every part reads the registry: each encoder version is a Feast feature view, with the encoder's declaration in its
# tags. Look at `weights`: what begins with `seeded:` is random, for machines that cannot download any, and says
# nothing about pictures.

# %%
store = EmbArkFeatureStore(repo_path=str(settings.repo))
specs = encoder_specs(store)
registered = pd.DataFrame(
    [{"view": s.view, "modality": s.modality, "dim": s.dim, "weights": s.pinned} for s in specs.values()]
)
print(registered.to_string(index=False))

# %% [markdown]
# ## Ask, and ask again
#
# A look-up is answered at once: one matrix, with a status for each key. What is not archived yet is `OOV`, its row is
# the view's OOV embedding, and it is asked for behind the answer. So ask again until all are hits, and keep the time
# of each answer.

# %%
names = ["astronaut", "astronaut-portrait", "cat", "cat-eyes", "coffee", "coffee-cup", "moon", "flower"]
urls = [f"{SITE}/photographs/{name}.jpg" for name in names]
began, course = time.monotonic(), []
with EmbArkClient(settings.embark_address) as embark:
    while not course or (course[-1]["OOV"] and time.monotonic() - began < 120):
        answer = embark.lookup(IMAGES, urls, timeout=10)
        told = Counter(Status(each).name for each in answer.status)
        course.append({"s": time.monotonic() - began, **{each.name: told[each.name] for each in Status}})
        time.sleep(0.1)
    milliseconds = []
    for _ in range(200):
        start = time.perf_counter()
        answer = embark.lookup(IMAGES, urls, timeout=10)
        milliseconds.append(1000 * (time.perf_counter() - start))
print(answer.vectors.shape, [Status(each).name for each in answer.status])

figure, (statuses, times) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
seen = pd.DataFrame(course).set_index("s")
statuses.stackplot(seen.index, [seen[name] for name in ("HIT", "OOV", "FAILED")], labels=["HIT", "OOV", "FAILED"])
statuses.set(xlabel="seconds", ylabel="keys", title="From OOV to HIT")
statuses.legend(loc="center right")
times.hist(milliseconds, bins=40)
times.set(xlabel="milliseconds", ylabel="look-ups", title=f"Look-ups of {len(urls)} hot keys")
plt.show()

# %% [markdown]
# ## What was known when
#
# A model must be trained with what was served. `as_served` reads what the archive held at an impression's time: OOV
# for the one of an hour before, as it would have been then. `as_of_content` gives the oldest embedding there is
# instead, so that an encoder can be read over traffic from before it.

# %%
now = pd.Timestamp.now(tz="UTC")
impressions = pd.DataFrame({"image_url": [urls[0], urls[0]], "event_timestamp": [now - pd.Timedelta(hours=1), now]})
for reading in ("as_served", "as_of_content"):
    history = historical_embeddings(store, read_impressions(impressions), [IMAGES], reading)[IMAGES]
    print(f"{reading:<14}", [Status(each).name for each in history.status], history.vectors[history.rows].shape)

# %% [markdown]
# The same through Feast's own call, for any Feast user:

# %%
frame = store.get_historical_features(impressions, [f"{IMAGES}:embedding"]).to_df()
print(frame[["image_url", "event_timestamp"]].to_string(index=False))

# %% [markdown]
# ## What is near
#
# All embeddings of a network share a direction, so their mean is taken off before cosines. `embark duplicates` does
# this for all of a view.

# %%
known = [name for name, status in zip(names, answer.status, strict=True) if status == Status.HIT]
vectors = answer.vectors[answer.status == Status.HIT]
vectors = vectors - vectors.mean(axis=0)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
cosines = vectors @ vectors.T
for name, row in zip(known, cosines - 2 * np.eye(len(known)), strict=True):
    print(f"{name:<18} is nearest to {known[int(row.argmax())]:<18} cosine {row.max():.2f}")

figure, axes = plt.subplots(figsize=(4.6, 4), layout="constrained")
shown = axes.imshow(cosines, vmin=-1, vmax=1, cmap="coolwarm")
axes.set_xticks(range(len(known)), known, rotation=60)
axes.set_yticks(range(len(known)), known)
axes.set_title(f"Cosines, {specs[IMAGES].pinned}", fontsize="medium")
figure.colorbar(shown)
plt.show()
