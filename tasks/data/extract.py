"""Items to tokens, once: each shard of a dataset becomes one token shard, made by an actor that holds the tokenizer.

A token shard is keyed by (tokenizer, dataset shard, views): one that an earlier artifact has is referred to, one that
is lost is made again alone, and each finished one leaves a marker.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tokenloom.configs.schema import ClusterConfig
from tokenloom.models.core.signals import upgraded
from tokenloom.tasks import modalities
from tokenloom.tasks.runtime.checks import refuse_other_signal
from tokenloom.tasks.runtime.cluster import worker_root
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.runtime.pool import Call, shared_out
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, Work, canonical_json, sha256_of

VERSION = 1
_ROWS = 256  # items encoded at once; fixed, so that the bytes do not depend on the machine's memory
DEPTH = 2  # shards that a worker holds at once, one in the encoder


def plan_extract(
    name: str, dataset: Artifact, tokenizer: Artifact, store: Store, views: tuple[str, ...] = ("plain",), kind: str = "image"
) -> StepSpec:
    """The step that tokenizes a dataset.

    Args:
        views: of each training item, as its kind has them (of images ``plain``, ``flip``, ``ten_crop``); other splits have the plain
            view alone.
        kind: of the signal.

    Raises:
        ConfigError: unknown views, or a signal that the tokenizer is not made for (checked when both are there).
    """
    step = StepSpec(
        "extract",
        VERSION,
        "tokens",
        name,
        {"views": list(modalities.kind(kind).parse_views(views))},
        {"dataset": dataset, "tokenizer": tokenizer},
    )
    try:
        data, given = store.record(dataset).notes, store.record(tokenizer).notes["spec"]["given"]
    except (ArtifactError, KeyError):
        return step  # an input is still to be made
    refuse_other_signal(upgraded(given)["signal"], modalities.signal_of(data), f"tokenizer {tokenizer.id}")
    return step


def shard_key(tokenizer: str, of_shard: str, views: list[str]) -> str:
    """Name of a token shard: 16 hex digits over the tokenizer's fingerprint, the dataset shard's hash and the views."""
    return sha256_of(canonical_json([VERSION, tokenizer, of_shard, views]))[:16]


def extract(step: StepSpec, store: Store, cluster: ClusterConfig, report: Report = silent) -> Outcome:
    """Make the tokens of a planned step; only the shards that no artifact has are encoded.

    Raises:
        ArtifactError: an input is missing or damaged, with its path.
        StepError: the tokenizer failed on a shard.
    """
    return store.execute(step, lambda work: _body(step, store, cluster, report, work))


def _body(step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
    dataset, tokenizer = step.inputs["dataset"], step.inputs["tokenizer"]
    data, made_by = store.record(dataset), store.record(tokenizer)
    layout = {**made_by.notes["layout"], "tokenizer": tokenizer.fingerprint}
    earlier = _earlier(store)
    found: dict[str, dict[str, Any]] = {}
    todo: list[tuple[str, dict[str, Any], list[str]]] = []
    there = work.marked()
    for shard in data.notes["shards"]:
        views = step.config["views"] if shard["split"] == "train" else ["plain"]
        key = shard_key(tokenizer.fingerprint, shard["sha256"], views)
        marked = work.done(key) if key in there else None
        if (have := marked["files"][0] if marked else earlier.get(key)) is not None:
            found[key] = have
        else:
            todo.append((key, shard, views))
    reused, total, timings = len(found), len(data.notes["shards"]), list[dict[str, Any]]()
    report("extract", reused, total, {})
    if todo:
        for key, made in _encode(todo, step, store, cluster, work.folder):
            timings.append(made.pop("timing") | {"rows": made["rows"]})
            work.mark(key, {"files": [made]})
            found[key] = made
            report("extract", len(found), total, {"rows": float(made["rows"]), **throughput(timings)})
    listed = []
    for shard in data.notes["shards"]:
        views = step.config["views"] if shard["split"] == "train" else ["plain"]
        key = shard_key(tokenizer.fingerprint, shard["sha256"], views)
        made = {k: found[key][k] for k in ("path", "size", "sha256", "rows")}
        work.add_file(**made)
        numbering = {"numbering": shard["numbering"]} if shard.get("numbering") is not None else {}
        listed.append({**made, **numbering, "split": shard["split"], "key": key, "images": shard["sha256"]})
    work.notes |= {
        "layout": layout,
        "classes": data.notes["classes"],
        "shards": listed,
        "tokenizer_spec": made_by.notes["spec"],
    }
    work.notes |= {name: data.notes[name] for name in ("numberings", "order") if name in data.notes}
    for file in data.notes.get("order", {}).get("files", {}).values():
        work.add_file(**file)
    rows = {split: sum(s["rows"] for s in listed if s["split"] == split) for split in ("train", "validation", "test")}
    return {**rows, "shards": total, "encoded": len(todo), "reused": reused, **throughput(timings)}


def throughput(timings: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Items a second over all workers, and the share of their time that was spent in the encoder; from its first item on."""
    if not timings:
        return {}
    workers = {t["worker"] for t in timings}
    spans = [_span([t for t in timings if t["worker"] == worker]) for worker in workers]
    share = sum(t["encoding"] for t in timings) / max(sum(spans), 1e-9)
    rows = sum(t["rows"] for t in timings)
    return {"images_per_second": rows / max(*spans, 1e-9), "encoder_share": min(1.0, share)}


def _span(timings: Sequence[dict[str, Any]]) -> float:
    return float(max(t["ended"] for t in timings) - min(t["began"] for t in timings))


def _earlier(store: Store) -> dict[str, dict[str, Any]]:
    """Whole token shards of all artifacts, by key."""
    shards = []
    for record in store.records("tokens"):
        with contextlib.suppress(ArtifactError):  # its list of shards is lost: it is made anew when it is needed
            shards += list(record.notes["shards"])
    sizes = store.storage.sizes([shard["path"] for shard in shards])
    return {shard["key"]: shard for shard in shards if sizes[shard["path"]] == shard["size"]}


def _encode(
    todo: list[tuple[str, dict[str, Any], list[str]]], step: StepSpec, store: Store, cluster: ClusterConfig, folder: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, file entry) as the actors finish shards, in any order."""
    run = cluster.execution
    given = (store.uri, worker_root(cluster, store.root), step.inputs["tokenizer"].to_dict(), run.threads, run.device)
    targets = [f"{folder}/shards/{shard['split']}-{key}.parquet" for key, shard, _ in todo]
    calls = [Call(key, "encode", (shard, views, target)) for (key, shard, views), target in zip(todo, targets)]
    return shared_out(Encoder, given, calls, store.root, cluster, what="tokenizing", total=len(calls), depth=DEPTH)


class Encoder:
    """The tokenizer of one worker; everything it is given is an address or plain data.

    Two shards may be under way at once (``DEPTH``): one is read, decoded or written while the other is encoded.
    """

    def __init__(self, store: str, root: str, tokenizer: dict[str, str], threads: int, device: str) -> None:
        import torch

        from tokenloom.models.core.build import load_model
        from tokenloom.tasks.runtime.cluster import node_root

        self._threads = threads
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self._store = Store(store, node_root(root))
        self._artifact = Artifact.from_dict(tokenizer)
        torch.set_num_threads(threads)
        folder = self._store.fetch(self._artifact, "model.json", "weights.safetensors")
        self._model: Any
        self._model, spec = load_model(folder, self._device)
        self._modality, self._shape = modalities.kind(spec.given["signal"]["kind"]), tuple(spec.given["signal"]["shape"])
        self._encoding = threading.Lock()
        self._warm, self._name = False, uuid.uuid4().hex

    def encode(self, of_shard: dict[str, Any], views: list[str], target: str) -> dict[str, Any]:
        """Write the token shard of one dataset shard; returns its entry for the record, and ``timing``."""
        import io

        import numpy as np
        import pyarrow.parquet as pq
        import torch

        from tokenloom.tasks.data.columns import further_columns
        from tokenloom.tasks.data.loader import Shard, read_shard
        from tokenloom.tasks.data.tokens import number_type, write_tokens

        torch.set_num_threads(self._threads)  # a setting of the thread
        storage = self._store.storage
        began = time.monotonic()
        shard = Shard.of(of_shard)
        raw = read_shard(storage, shard)
        items, label_N = self._modality.read(raw, storage.uri(shard.path), self._shape)
        names = pq.ParquetFile(io.BytesIO(raw)).read(["key", "caption"])
        layout = replace(self._model.layout, tokenizer=self._artifact.fingerprint)
        with self._encoding, torch.inference_mode():
            if not self._warm:  # the first call of a network is slow, and says nothing about the rest
                self._tokens(items[:2], views[0])
                self._warm, began = True, time.monotonic()
            start = time.monotonic()
            starts = range(0, len(items), _ROWS)
            parts = [self._tokens(items[start : start + _ROWS], view) for view in views for start in starts]
            seconds = time.monotonic() - start
        data = write_tokens(
            None,
            keys=names["key"].to_pylist() * len(views),
            view_N=np.repeat(np.arange(len(views), dtype=np.uint8), len(items)),
            label_N=np.tile(label_N, len(views)),
            captions=names["caption"].to_pylist() * len(views),
            columns=further_columns(raw, views),
            data=np.concatenate([data for data, _ in parts]),
            length_N=None if parts[0][1] is None else np.concatenate([length for _, length in parts]),
            layout=layout,
            lineage={"tokenizer": self._artifact.id, "images": shard.sha256, "views": views, "type": str(number_type(layout))},
        )
        storage.write(target, data)
        made = {"path": target, "size": len(data), "sha256": sha256_of(data), "rows": len(items) * len(views)}
        return made | {"timing": {"worker": self._name, "encoding": seconds, "began": began, "ended": time.monotonic()}}

    def _tokens(self, items: Any, view: str) -> tuple[Any, Any]:
        """Token data of some stored items as an array, and the lengths of ragged rows."""
        tokens = self._model.encode(self._modality.view(self._modality.tensor(items).to(self._device), view))
        data = tokens.data.cpu().long() if tokens.layout.discrete else tokens.data.cpu().float()
        return data.numpy(), None if tokens.lengths is None else tokens.lengths.cpu().numpy()
