"""Extraction against the bare encoder on the same core: images a second of each, and how many bytes the ids take.

    python benchmarks/extraction.py [--images 1500] [--channels 96] [--out benchmarks/results/extraction.json]

A tokenizer that takes at least 5 ms an image on one thread encodes real digits once in a plain loop, once by ``tasks/data/extract.py``
with one actor of one thread (Parquet in, Parquet out), then in the loop again; the rate of the loop is the mean of both.  On a machine
that others use as well, the ratio of processor time says more than that of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow.parquet as pq
import torch

from tokenloom.configs.schema import ClusterConfig, DataConfig
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec, load_model, save_model
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.data.extract import _ROWS, Encoder, extract, plan_extract
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.data.tokens import number_type, row_shape
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work


def tokenizer(store: Store, dataset: Artifact, channels: int) -> Artifact:
    """An untrained VQ tokenizer, large enough that encoding and not reading sets the pace."""
    args = {"codes": 1024, "channels": channels, "multipliers": [1, 1, 1], "patch": 1, "blocks": 1}
    spec = ModelSpec("tokenizer", "vq", args, {}, {"signal": signals.image(32, 1).to_dict()})

    def body(work: Work) -> dict[str, Any]:
        torch.manual_seed(0)
        model: Any = spec.build()
        save_model(work.scratch, spec, model.state_dict())
        for name in ("model.json", "weights.safetensors"):
            work.put_file(work.scratch / name, name)
        work.notes |= {"spec": spec.to_dict(), "layout": {**model.layout.to_dict(), "tokenizer": work.step.fingerprint}}
        return {}

    return store.execute(StepSpec("train_tokenizer", 1, "tokenizer", "bench", {"args": args}, {"dataset": dataset}), body).artifact


@torch.inference_mode()
def bare(store: Store, dataset: Artifact, codec: Artifact) -> tuple[float, float]:
    """Images a second of ``encode`` alone, on images that are in memory; and a second of processor time."""
    model: Any = load_model(store.fetch(codec))[0]
    loader = Loader(Rows.of(store.record(dataset).notes, store.uri, "train"), store.cache)
    image = loader.get(np.arange(len(loader))).signal
    model.encode(image[:2])
    began, worked = time.perf_counter(), time.process_time()
    for part in image.split(_ROWS):
        model.encode(part)
    return len(image) / (time.perf_counter() - began), len(image) / (time.process_time() - worked)


def whole(store: Store, dataset: Artifact, codec: Artifact) -> float:
    """Images a second of processor time of the whole work on a shard (read, decode, encode, write), without Ray."""
    encoder = Encoder(store.uri, str(store.root), codec.to_dict(), 1, "cpu")
    shards = [s for s in store.record(dataset).notes["shards"] if s["split"] == "train"]
    encoder.encode(shards[0], ["plain"], "warm.parquet")
    worked = time.process_time()
    rows = sum(encoder.encode(shard, ["plain"], "bench.parquet")["rows"] for shard in shards)
    return rows / (time.process_time() - worked)


def ids_share(store: Store, tokens: Artifact) -> float:
    """Bytes of the column ``ids`` over those of the bare numbers."""
    notes = store.record(tokens).notes
    from tokenloom.models.core.protocols import TokenLayout

    layout = TokenLayout.from_dict(notes["layout"])
    stored = 0
    for shard in notes["shards"]:
        metadata = pq.ParquetFile(store.storage.local_path(shard["path"])).metadata
        for g in range(metadata.num_row_groups):
            group = metadata.row_group(g)
            columns = [group.column(i) for i in range(group.num_columns)]
            stored += sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] == "ids")
    rows = sum(s["rows"] for s in notes["shards"])
    return stored / (rows * int(np.prod(row_shape(layout))) * number_type(layout).itemsize)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "extraction.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as folder:
        store = Store(str(Path(folder) / "store"), Path(folder) / "root")
        data = DataConfig(source="digits", size=32, fit="pad", validation=0.05, limit=given.images, shard_rows=128)
        dataset = ingest("bench", data, store).artifact
        codec = tokenizer(store, dataset, given.channels)
        cluster = ClusterConfig(extract_actors=1, execution=ExecutionSettings(workers=1, threads=1, device="cpu"))
        before = bare(store, dataset, codec)
        outcome = extract(plan_extract("bench", dataset, codec, store), store, cluster)
        after = bare(store, dataset, codec)
        loop, speed = (before[0] + after[0]) / 2, outcome.metrics["images_per_second"]
        work = whole(store, dataset, codec)
        result = {
            "encoder_ms_per_image": 1000 / loop,
            "bare_images_per_second": [before[0], after[0]],
            "extraction_images_per_second": speed,
            "ratio": speed / loop,
            "ratio_of_processor_time": 2 * work / (before[1] + after[1]),
            "encoder_share": outcome.metrics["encoder_share"],
            "ids_bytes_over_numbers": ids_share(store, outcome.artifact),
            "images": given.images,
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
