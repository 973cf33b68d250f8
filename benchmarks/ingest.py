"""What ingest costs: ``python -m benchmarks.ingest [--images N] [--bounded N] [--keep]``.

- Of a core: images a second of ingest (JPEG in, resized, JPEG out) against a bare loop that reads, decodes, resizes and encodes the same
  files with the same library, both on one core.
- Passed through: the same of files that keep their bytes, against a loop that decodes them (as ingest has to, to see that they are whole),
  and against a copy with a hash.
- Bounded: a set of many JPEG files is ingested, a small tokenizer trains ten steps and encodes all of it, with a cache of a fixed size; the
  memory at its peak, by process.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.speed.timing import machine
from tokenloom.configs.schema import DataConfig
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.store.artifacts import Store

RESULTS = Path(__file__).parent / "results" / "ingest.json"


def jpegs(folder: Path, count: int, side: int) -> list[Path]:
    """So many JPEG files of ten classes: few pictures, each file with bytes of its own."""
    draw, paths = np.random.default_rng(0), []
    bases = []
    for _ in range(16):
        image = Image.fromarray(draw.integers(0, 256, (side // 16, side // 16, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=90)
        bases.append(sink.getvalue())
    for i in range(count):
        path = folder / str(i % 10) / f"{i:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bases[i % 16] + f"{i}".encode())  # what stands after the end of a JPEG is read by nobody
        paths.append(path)
    return paths


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def bare(paths: list[Path], size: int, encode: bool) -> None:
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as opened:
            image = opened.convert("RGB")
        if encode:
            sink = io.BytesIO()
            image.resize((size, size), Image.Resampling.LANCZOS).save(sink, "JPEG", quality=95, subsampling=0)


def copied(paths: list[Path], folder: Path) -> None:
    for path in paths:
        data = path.read_bytes()
        hashlib.sha256(data).hexdigest()
        (folder / path.name).write_bytes(data)


def one_round(count: int, backwards: bool) -> dict[str, float]:
    """Images a second of each way, one after the other."""
    with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as name:
        folder = Path(name)
        large, right = jpegs(folder / "large", count, 384), jpegs(folder / "right", count, 256)
        (folder / "copied").mkdir()
        jpegs(folder / "first", 20, 256)
        given = {"size": 256, "channels": 3, "fit": "crop", "encode": "jpeg"}
        stores = [Store(str(folder / str(i)), folder / f"{i}-root") for i in range(2)]
        ingest("bench", DataConfig(source=f"folder:{folder}/first", **given), stores[1])  # imports what it needs
        works: dict[str, Callable[[], object]] = {
            "bare resize": lambda: bare(large, 256, True),
            "ingest resize": lambda: ingest("bench", DataConfig(source=f"folder:{folder}/large", **given), stores[0]),
            "bare decode": lambda: bare(right, 256, False),
            "copy": lambda: copied(right, folder / "copied"),
            "ingest kept": lambda: ingest("bench", DataConfig(source=f"folder:{folder}/right", **given), stores[1]),
        }
        return {what: count / seconds(work) for what, work in (reversed(works.items()) if backwards else works.items())}


def of_a_core(count: int) -> dict[str, float]:
    """Ratios on one core, the best of two rounds."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rounds = [one_round(count, backwards) for backwards in (False, True)]
    found = {what: [each[what] for each in rounds] for what in rounds[0]}
    best = {f"{what}, images a second": round(max(values), 1) for what, values in found.items()}
    ratio = {what: max(values) for what, values in found.items()}
    return {
        **best,
        "ingest to bare, resized": round(ratio["ingest resize"] / ratio["bare resize"], 3),
        "kept to bare decoding": round(ratio["ingest kept"] / ratio["bare decode"], 3),
        "kept to a copy with a hash": round(ratio["ingest kept"] / ratio["copy"], 3),
    }


def bounded(count: int) -> dict[str, object]:
    """Ingest, ten steps and extraction of many files; MB at the peak of the command and of its largest process."""
    with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as name:
        folder = Path(name)
        jpegs(folder / "data", count, 64)
        train = {"steps": 10, "batch": 32, "log_every": 5, "validate_every": 10, "checkpoint_every": 10}
        args = {"codes": 16, "channels": 8, "multipliers": [1, 2, 2], "patch": 2}
        run = {
            "name": "bounded",
            "data": {"source": f"folder:{folder}/data", "size": 64, "channels": 3, "fit": "crop"},
            "tokenizer": {"recipe": "vq", "args": args, "train": train},
            "evaluate": {"metrics": ["reconstruction"]},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(run))
        execution = {"workers": 1, "device": "cpu", "cache_gb": 0.1, "decoded_gb": 0.05}
        (folder / "one.yaml").write_text(yaml.safe_dump({"execution": execution, "extract_actors": 2, "ingest_actors": 2}))
        found: dict[str, object] = {"images": count, "source_mb": round(sum(p.stat().st_size for p in folder.rglob("*.jpg")) / 1e6)}
        for step in ("ingest", "train_tokenizer", "extract"):
            command = [
                sys.executable,
                "-m",
                "tokenloom.flows.cli.main",
                "run",
                str(folder / "run.yaml"),
                "--cluster",
                str(folder / "one.yaml"),
            ]
            command += ["--root", str(folder / "root"), "--no-prefect", "--json", "--only", step]
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            found[step] = {
                "seconds": round(time.perf_counter() - began, 1),
                "peak_mb_of_the_largest_process_so_far": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
            }
            print(step, found[step], file=sys.stderr, flush=True)
        found["cache_mb"] = round(sum(p.stat().st_size for p in (folder / "root" / "cache").rglob("*") if p.is_file()) / 1e6, 1)
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--bounded", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    result: dict[str, object] = {"machine": machine()}
    if given.bounded:
        result["bounded"] = bounded(given.bounded)
    if given.images:
        result["one core"] = of_a_core(given.images)
    print(json.dumps(result, indent=1))
    if given.keep:
        before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        RESULTS.write_text(json.dumps(before | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
