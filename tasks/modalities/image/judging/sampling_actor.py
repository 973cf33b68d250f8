"""Samples for an evaluation, drawn in shards by Ray actors; a shard that is finished is never drawn again.

Every sample has its own seed, so the samples depend neither on the shards nor on how many actors there are.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig, Resize
from tokenloom.tasks.data.arrays import scratch
from tokenloom.tasks.runtime.cluster import worker_root
from tokenloom.tasks.runtime.pool import Call, shared_out
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work, sha256_of
from tokenloom.tasks.store.verification import read_verified

if TYPE_CHECKING:
    from tokenloom.tasks.serving.request import Request


class Parts(Protocol):
    """N samples that are asked for, made into requests part by part."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Request:
        """What is asked for samples ``start:stop``."""


@dataclass(frozen=True)
class Samples:
    """Samples (N, H, W, C), many of them in a mapped file, numbers of how they were drawn (images a second of one worker, the decoding's),
    and what the standard network computes of them, shard by shard (None: another network judges)."""

    image: NDArray[np.uint8]
    numbers: dict[str, float]
    features: Callable[[], Iterator[dict[str, NDArray[np.float32]]]] | None


def draw_samples(
    step: StepSpec, store: Store, cluster: ClusterConfig, config: EvaluateConfig, request: Parts, work: Work, report: Report
) -> Samples:
    """A sample of each label or text of the request; a shard that is finished is not drawn again."""
    starts = range(0, len(request), config.shard)
    marks = {i: payload for i in range(len(starts)) if (payload := work.done(f"samples-{i:05d}"))}
    todo = [i for i in range(len(starts)) if i not in marks]
    done = len(request) - sum(min(config.shard, len(request) - starts[i]) for i in todo)
    report("sample", done, len(request), {})
    for i, drawn, seconds, decoding in _finished(todo, request, config, step, store, cluster) if todo else ():
        files = [_write(store, f"{work.folder}/parts/{i:05d}.{name}.npy", value) for name, value in drawn.items()]
        marks[i] = {"files": files, "rate": len(drawn["image"]) / max(seconds, 1e-9), "decoding": decoding}
        work.mark(f"samples-{i:05d}", marks[i])
        done += len(drawn["image"])
        report("sample", done, len(request), {"images_per_second": marks[i]["rate"]})
    parts = [{file["path"].split(".")[-2]: file for file in marks[i]["files"]} for i in range(len(starts))]
    images, at = np.zeros(0, np.uint8), 0
    for part in parts:
        image = _read(store, part["image"])
        if not at:
            images = scratch(store.root / "scratch", (len(request), *image.shape[1:]), np.uint8)
        images[at : at + len(image)] = image
        at += len(image)

    def features() -> Iterator[dict[str, NDArray[np.float32]]]:
        return ({name: _read(store, file) for name, file in part.items() if name != "image"} for part in parts)

    # The median of the shards: the first one of a worker warms up.
    numbers = {"images_per_second": float(np.median([marks[i]["rate"] for i in range(len(starts))]))}
    traces = [marks[i].get("decoding", {}) for i in range(len(starts))]  # none of a shard that an older version has drawn
    numbers |= {name: float(np.mean([trace[name] for trace in traces])) for name in traces[0] if all(name in t for t in traces)}
    return Samples(images, numbers, features if set(parts[0]) > {"image"} else None)


def _read(store: Store, file: dict[str, Any]) -> NDArray:
    value: NDArray = np.load(io.BytesIO(read_verified(store.storage, file["path"], file["sha256"])), allow_pickle=False)
    return value


def _write(store: Store, path: str, value: NDArray) -> dict[str, Any]:
    raw = io.BytesIO()
    np.save(raw, value)
    store.storage.write(path, raw.getvalue())
    return {"path": path, "size": len(raw.getvalue()), "sha256": sha256_of(raw.getvalue())}


def _finished(
    todo: list[int], request: Parts, config: EvaluateConfig, step: StepSpec, store: Store, cluster: ClusterConfig
) -> Iterator[tuple[int, dict[str, NDArray], float, dict[str, float]]]:
    """Yield (shard, images and their features by name, seconds of drawing, numbers of the decoding) as the actors finish, in any order."""
    run = cluster.execution
    models = {role: step.inputs[role].to_dict() for role in ("generator", "tokenizer", "density", "draft") if role in step.inputs}
    judge = None if config.features == "auto" else (step.inputs["features"].to_dict(), config.resize)
    classes = list(store.record(step.inputs["dataset"]).notes["classes"])
    given = (store.uri, worker_root(cluster, store.root), models, classes, step.config.get("sample", {}), run.threads, run.device, judge)
    calls = (Call(i, "draw", (request.part(i * config.shard, (i + 1) * config.shard), config.seed, i * config.shard)) for i in todo)
    for i, (drawn, seconds, decoding) in shared_out(SamplingActor, given, calls, store.root, cluster, what="sampling", total=len(todo)):
        yield i, drawn, seconds, decoding


class SamplingActor:
    """Generator and tokenizer, or the density, of one worker, and the standard network where it judges (``judge``: its artifact and
    the resize); everything it is given is an address or plain data."""

    def __init__(
        self,
        store: str,
        root: str,
        models: dict[str, dict[str, str]],
        classes: list[str],
        sample: dict[str, Any],
        threads: int,
        device: str,
        judge: tuple[dict[str, str], Resize] | None = None,
    ) -> None:
        import torch

        from tokenloom.tasks.runtime.cluster import node_root
        from tokenloom.tasks.serving.predict import open_pair

        torch.set_num_threads(threads)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        at = Store(store, node_root(root))
        folders = {role: at.fetch(Artifact.from_dict(a), "model.json", "weights.safetensors") for role, a in models.items()}
        first = folders.get("generator") or folders["density"]
        self._pair = open_pair(first, folders.get("tokenizer"), classes, sample, device, draft=folders.get("draft"))
        self._judge = None
        if judge is not None:
            from tokenloom.tasks.modalities.image.judging import inception

            network = inception.load(at.fetch(Artifact.from_dict(judge[0])), device)
            self._judge = functools.partial(inception.features, network, resize=judge[1])

    def draw(self, request: Request, seed: int, start: int) -> tuple[dict[str, NDArray], float, dict[str, float]]:
        """The images of one shard, which begins at sample number ``start``, and their features, by name; the seconds that drawing took
        and the numbers of the decoding."""
        from tokenloom.tasks.modalities.image.served.draw import traced_images

        conditions = self._pair.condition_spec.conditions(request)
        began = time.perf_counter()
        images, decoding = traced_images(self._pair.generator, self._pair.tokenizer, conditions, self._pair.sampler, seed, start)
        seconds = time.perf_counter() - began
        return {"image": images} | ({} if self._judge is None else self._judge(image_NHWC=images)), seconds, decoding
