"""The standard network's features of many real images, told by Ray actors shard by shard; only what comes out of order is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.configs.schema import ClusterConfig, Resize
from tokenloom.tasks import modalities
from tokenloom.tasks.data.loader import Rows, Shard, read_shard
from tokenloom.tasks.modalities.image.judging import inception
from tokenloom.tasks.runtime.cluster import worker_root
from tokenloom.tasks.runtime.pool import Call, shared_out
from tokenloom.tasks.store.artifacts import Artifact, Store

LEAST = 4096  # images from which on actors are worth their start


def features_of(
    store: Store, dataset: Artifact, splits: Sequence[str], network: Artifact, resize: Resize, cluster: ClusterConfig
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Features by name (``inception.features``) of the shards of some splits, in their order."""
    rows, run = Rows.of(store.record(dataset).notes, store.uri, *splits), cluster.execution
    bare = replace(rows, shards=()).to_dict()
    given = (store.uri, worker_root(cluster, store.root), network.to_dict(), resize, bare, run.threads, run.device)
    calls = [Call(i, "see", (asdict(shard),)) for i, shard in enumerate(rows.shards)]
    early, at = dict[int, dict[str, NDArray[np.float32]]](), 0
    for i, found in shared_out(FeatureActor, given, calls, store.root, cluster, what="features of real images", total=len(calls)):
        early[i] = found
        while at in early:
            yield early.pop(at)
            at += 1


class FeatureActor:
    """The standard network of one worker; everything it is given is an address or plain data."""

    def __init__(self, store: str, root: str, network: dict[str, str], resize: Resize, rows: dict[str, Any], threads: int, device: str):
        import torch

        from tokenloom.tasks.runtime.cluster import node_root

        torch.set_num_threads(threads)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._store, self._rows, self._resize = Store(store, node_root(root)), Rows.from_dict(rows), resize
        self._network = inception.load(self._store.fetch(Artifact.from_dict(network)), device)

    def see(self, shard: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
        """The features of one dataset shard's images."""
        one, storage = Shard(**shard), self._store.storage
        images, _ = modalities.kind(self._rows.modality).read(read_shard(storage, one), storage.uri(one.path), self._rows.shape)
        return inception.features(self._network, images, self._resize)
