"""Samples for an evaluation, drawn in shards by Ray actors; a shard that is finished is never drawn again.

Every sample has its own seed, so the samples depend neither on the shards nor on how many actors there are.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig
from tokenloom.tasks.runtime.cluster import worker_root
from tokenloom.tasks.runtime.pool import Call, shared_out
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work, sha256_of
from tokenloom.tasks.store.verification import read_verified

if TYPE_CHECKING:
    from tokenloom.tasks.serving.request import Request


def draw_samples(
    step: StepSpec, store: Store, cluster: ClusterConfig, config: EvaluateConfig, request: Request, work: Work, report: Report
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """A sample of each label or text of the request, images a second of one worker and numbers of the decoding; a shard that is finished
    is not drawn again."""
    shards = [request[start : start + config.shard] for start in range(0, len(request), config.shard)]
    marks = {i: payload for i in range(len(shards)) if (payload := work.done(f"samples-{i:05d}"))}
    todo = [i for i in range(len(shards)) if i not in marks]
    done = len(request) - sum(len(shards[i]) for i in todo)
    report("sample", done, len(request), {})
    for i, image, seconds, decoding in _finished(todo, shards, config.shard, step, store, cluster, config.seed) if todo else ():
        path = f"{work.folder}/parts/{i:05d}.npy"
        raw = io.BytesIO()
        np.save(raw, image)
        store.storage.write(path, raw.getvalue())
        marks[i] = {
            "files": [{"path": path, "size": len(raw.getvalue()), "sha256": sha256_of(raw.getvalue())}],
            "rate": len(image) / max(seconds, 1e-9),
            "decoding": decoding,
        }
        work.mark(f"samples-{i:05d}", marks[i])
        done += len(image)
        report("sample", done, len(request), {"images_per_second": marks[i]["rate"]})
    files = [marks[i]["files"][0] for i in range(len(shards))]
    images = [np.load(io.BytesIO(read_verified(store.storage, f["path"], f["sha256"])), allow_pickle=False) for f in files]
    # the median of the shards: the first one of a worker warms up
    numbers = {"images_per_second": float(np.median([marks[i]["rate"] for i in range(len(shards))]))}
    traces = [marks[i].get("decoding", {}) for i in range(len(shards))]  # none of a shard that an older version has drawn
    numbers |= {name: float(np.mean([trace[name] for trace in traces])) for name in traces[0] if all(name in t for t in traces)}
    return np.concatenate(images), numbers


def _finished(
    todo: list[int], shards: Sequence[Request], size: int, step: StepSpec, store: Store, cluster: ClusterConfig, seed: int
) -> Iterator[tuple[int, NDArray[np.uint8], float, dict[str, float]]]:
    """Yield (shard, images, seconds, numbers of the decoding) as the actors finish, in any order."""
    run = cluster.execution
    models = {role: step.inputs[role].to_dict() for role in ("generator", "tokenizer", "density", "draft") if role in step.inputs}
    given = (store.uri, worker_root(cluster, store.root), models, step.config.get("sample", {}), run.threads, run.device)
    calls = [Call(i, "draw", (shards[i], seed, i * size)) for i in todo]
    for i, (images, seconds, decoding) in shared_out(SamplingActor, given, calls, store.root, cluster, what="sampling"):
        yield i, images, seconds, decoding


class SamplingActor:
    """Generator and tokenizer, or the density, of one worker; everything it is given is an address or plain data."""

    def __init__(self, store: str, root: str, models: dict[str, dict[str, str]], sample: dict[str, Any], threads: int, device: str) -> None:
        import torch

        from tokenloom.tasks.runtime.cluster import node_root
        from tokenloom.tasks.serving.predict import open_pair

        torch.set_num_threads(threads)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        at = Store(store, node_root(root))
        folders = {role: at.fetch(Artifact.from_dict(a), "model.json", "weights.safetensors") for role, a in models.items()}
        first = folders.get("generator") or folders["density"]
        self._pair = open_pair(first, folders.get("tokenizer"), [], sample, device, draft=folders.get("draft"))

    def draw(self, request: Request, seed: int, start: int) -> tuple[NDArray[np.uint8], float, dict[str, float]]:
        """The images of one shard, which begins at sample number ``start``, the seconds it took and the numbers of the decoding."""
        from tokenloom.tasks.modalities.image.served.draw import traced_images

        conditions = request if isinstance(request, np.ndarray) else self._pair.condition_spec.conditions(request)
        began = time.perf_counter()
        images, decoding = traced_images(self._pair.generator, self._pair.tokenizer, conditions, self._pair.sampler, seed, start)
        return images, time.perf_counter() - began, decoding
