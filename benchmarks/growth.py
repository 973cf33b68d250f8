"""How the store grows: ``python -m benchmarks.growth [--sizes 1000 10000 100000] [--keep]``.

Stores of so many image shards and token shards (tiny files; all but the new one are bytes that nothing reads) on disk and on an S3 server
of this machine.  Of each operation, in a process of its own: requests to the server, seconds, and the memory at its peak.  The
exponent is that of a power law through the seconds and requests of the sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.timing import machine
from tokenloom.configs.schema import ClusterConfig, DataConfig
from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec, save_model
from tokenloom.tasks.data import extract as extracting
from tokenloom.tasks.data import ingest as ingesting
from tokenloom.tasks.data.matching import match, units_of
from tokenloom.tasks.modalities import kind
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work, sha256_of
from tokenloom.tasks.store.inspection import inspect
from tokenloom.tasks.store.lineage import collect

RESULTS = Path(__file__).parent / "results" / "growth.json"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
OPERATIONS = ("plan", "no-op run", "append one shard", "extract one shard", "doctor", "gc")
BUCKET = "growth"


def data(source: Path) -> DataConfig:
    """One image a shard."""
    return DataConfig(source=f"folder:{source}", size=16, fit="pad", validation=0.01, shard_rows=1)


def images(folder: Path, count: int) -> None:
    """So many small pictures of ten classes."""
    content = png.encode(np.zeros((16, 16, 1), np.uint8))
    for label in range(10):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / str(i % 10) / f"{i:07d}.png").write_bytes(content)


def build(store: Store, source: Path) -> None:
    """A store with a dataset of the source, a tokenizer, and the tokens; only the lists and sizes are real."""
    config, root = data(source), store.storage.local_path()
    plan = match(kind("image").open_source(config), config, store)
    staging, made = root / ".staging" / "made", []
    staging.mkdir(parents=True)
    for number, unit in enumerate(units_of(plan, config)):
        entry, item = unit.items[0]
        content = f"PAR1 {number}".encode()
        digest = sha256_of(content)
        file = f"{unit.split}-{digest[:12]}.parquet"
        (staging / file).write_bytes(content)
        row = {"key": item.key, "entry": entry.name, "split": unit.split, "label": item.label, "pixels": f"{number:032x}"}
        index = [{**row, "caption_bytes": 0, "beside": ""}]
        whole = {"split": unit.split, "file": file, "rows": 1, "size": len(content), "sha256": digest, "index": index}
        made.append({**whole, "rejects": [], "digests": {entry.name: digest}})
    dataset = ingesting._commit("growth", config, store, plan, made, ".staging/made", time.monotonic()).artifact
    shutil.rmtree(root / ".staging")
    tokenizer = _tokenizer(store, dataset)
    step = extracting.plan_extract("growth", dataset, tokenizer, store)

    def body(work: Work) -> dict[str, Any]:
        record, listed = store.record(dataset), []
        (root / work.folder / "shards").mkdir(parents=True)
        for shard in record.notes["shards"]:
            key = extracting.shard_key(tokenizer.fingerprint, shard["sha256"], ["plain"])
            content = f"PAR1 {key}".encode()
            path = f"{work.folder}/shards/{shard['split']}-{key}.parquet"
            (root / path).write_bytes(content)
            one = work.add_file(path, size=len(content), sha256=sha256_of(content), rows=1)
            listed.append({**one, "split": shard["split"], "key": key, "images": shard["sha256"]})
        layout = {**store.record(tokenizer).notes["layout"], "tokenizer": tokenizer.fingerprint}
        work.notes |= {"layout": layout, "classes": record.notes["classes"], "shards": listed, "order": record.notes["order"]}
        return {}

    store.execute(step, body)


def _tokenizer(store: Store, dataset: Artifact) -> Artifact:
    spec = ModelSpec("tokenizer", "var_vq", dict(registry.get("var_vq").tiny), {}, {"signal": signals.image(16, 1).to_dict()})

    def body(work: Work) -> dict[str, Any]:
        model: Any = spec.build()
        save_model(work.scratch, spec, model.state_dict())
        for name in ("model.json", "weights.safetensors"):
            work.put_file(work.scratch / name, name)
        work.notes |= {"spec": spec.to_dict(), "layout": {**model.layout.to_dict(), "tokenizer": work.step.fingerprint}}
        return {}

    return store.execute(StepSpec("train_tokenizer", 1, "tokenizer", "growth", {}, {}), body).artifact


def operation(name: str, store: Store, source: Path) -> None:
    """Carry out one operation; those that make something are made in this order."""
    config = data(source)
    if name == "append one shard":
        (source / "0" / "new.png").write_bytes(png.encode(np.full((16, 16, 1), 9, np.uint8)))
    if name in ("plan", "no-op run", "append one shard"):
        found = ingesting.scan(config, store) if name == "plan" else None
        made = (
            found.record.artifact if found is not None and found.record is not None else ingesting.ingest("growth", config, store).artifact
        )
        if name == "append one shard":
            return
        step = extracting.plan_extract("growth", made, store.resolve("growth", "tokenizer"), store)
        assert store.find(step) if name == "plan" else extracting.extract(step, store, ClusterConfig()).status == "cached"
    elif name == "extract one shard":
        newest = store.records("dataset")[-1].artifact
        step = extracting.plan_extract("growth", newest, store.resolve("growth", "tokenizer"), store)
        extracting._encode = _in_process  # type: ignore[assignment]
        outcome = extracting.extract(step, store, ClusterConfig())
        assert outcome.metrics["encoded"] == 1, outcome.metrics
    elif name == "doctor":
        assert not list(inspect(store, deep=False))
    else:
        assert not collect(store, dry_run=True)


def _in_process(todo: Any, step: StepSpec, store: Store, _cluster: ClusterConfig, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    encoder = extracting.Encoder(store.uri, str(store.root), step.inputs["tokenizer"].to_dict(), 1, "cpu")
    for key, shard, views in todo:
        yield key, encoder.encode(shard, views, f"{folder}/shards/{shard['split']}-{key}.parquet")


class _Counter(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.requests = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.requests += "HTTP/1.1" in record.getMessage()


@contextlib.contextmanager
def served(folder: Path, counter: _Counter) -> Iterator[str]:
    """The files of a folder on an S3 server of this process."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    log = logging.getLogger("werkzeug")
    log.handlers, log.propagate = [counter], False
    log.setLevel(logging.INFO)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "t",
        "SECRET_ACCESS_KEY": "t",
        "REGION": "us-east-1",
    }.items():
        os.environ[f"AWS_{name}"] = value
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    bucket = f"{BUCKET}-{port}"  # names are given once in a process
    backend.create_bucket(bucket, "us-east-1")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            backend.put_object(bucket, path.relative_to(folder).as_posix(), path.read_bytes())
    yield f"s3://{bucket}"
    server.stop()
    backend.buckets.pop(bucket)


def measured(store: str, root: Path, source: Path, counter: _Counter) -> dict[str, dict[str, float]]:
    """Each operation in a process of its own."""
    found = {}
    for name in OPERATIONS:
        before = counter.requests
        command = [
            sys.executable,
            "-m",
            "benchmarks.growth",
            "--operation",
            name,
            "--store",
            store,
            "--root",
            str(root),
            "--source",
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = json.loads(done.stdout.splitlines()[-1]) | {"requests": counter.requests - before}
        print(f"  {name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def exponent(sizes: list[int], values: list[float]) -> float | None:
    """The slope of a line through the logarithms; None where a value is zero."""
    if len(sizes) < 2 or min(values) <= 0:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log(values), 1)[0]), 2)


def table_of(result: dict[str, Any]) -> str:
    """The figures as a table of Markdown."""
    sizes = list(result["shards"]["disk"])
    lines = ["| | shards | " + " | ".join(OPERATIONS) + " |", "|---|---|" + "---|" * len(OPERATIONS)]
    for place in ("disk", "s3"):
        for size in sizes:
            row = result["shards"][place][size]
            cells = [
                f"{row[name]['seconds']:g} s, {row[name]['peak_mb']:,} MB"
                + (f", {row[name]['requests']:,} requests" if place == "s3" else "")
                for name in OPERATIONS
            ]
            lines.append(f"| {place} | {int(size):,} | " + " | ".join(cells) + " |")
        grown = result["exponents"][place]
        powers = [
            ", ".join(f"{what} {grown[name][what]}" for what in ("seconds", "requests") if grown[name][what] is not None)
            for name in OPERATIONS
        ]
        lines.append(f"| {place} | exponent | " + " | ".join(powers) + " |")
    return "\n".join(lines)


def write_page(result: dict[str, Any]) -> None:
    """Put the table into ``docs/scale.md``."""
    head, rest = PAGE.read_text().split("<!-- growth -->")
    PAGE.write_text(f"{head}<!-- growth -->\n\n{table_of(result)}\n\n<!-- /growth -->" + rest.split("<!-- /growth -->")[1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--keep", action="store_true")
    for name in ("operation", "store", "root", "source"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    if given.operation:
        store = Store(given.store, Path(given.root))
        began = time.perf_counter()
        operation(given.operation, store, Path(given.source))
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}))
        return
    os.fsync = lambda *_: None  # of building alone: nothing here has to outlive a crash
    table: dict[str, dict[int, Any]] = {"disk": {}, "s3": {}}
    for size in given.sizes:
        with tempfile.TemporaryDirectory(prefix="tokenloom-growth-") as name:
            folder = Path(name)
            images(folder / "images", size)
            began = time.perf_counter()
            build(Store(str(folder / "store"), folder / "root"), folder / "images")
            print(f"{size} shards, built in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            counter = _Counter()
            with served(folder / "store", counter) as address:
                table["s3"][size] = measured(address, folder / "root-of-s3", folder / "images", counter)
            (folder / "images" / "0" / "new.png").unlink()
            table["disk"][size] = measured(str(folder / "store"), folder / "root", folder / "images", _Counter())
    fitted: dict[str, dict[str, dict[str, float | None]]] = {}
    for place, found in table.items():
        fitted[place] = {}
        for name in OPERATIONS:
            series = {what: [found[size][name][what] for size in given.sizes] for what in ("seconds", "requests", "peak_mb")}
            fitted[place][name] = {what: exponent(given.sizes, values) for what, values in series.items()}
    result = {"machine": machine(), "shards": table, "exponents": fitted}
    print(json.dumps(result, indent=1))
    if given.keep:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        write_page(json.loads(json.dumps(result)))


if __name__ == "__main__":
    main()
