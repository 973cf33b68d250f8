"""The same recipe on local disk, on object storage, on one Ray node and on several: what it makes must be the same.

    python benchmarks/places.py smoke_var --out benchmarks/results/places.json

Nodes are raylets on this machine that share nothing but an S3 server on loopback (tests/support/nodes.py). Compared are the fingerprints
of all steps and the SHA-256 of every recorded file of weights, images and tokens, for the same number of workers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import nodes

from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.storage import Storage

WORKERS = 2


def run(recipe: str, place: str, folder: Path, store: str, cluster: nodes.Nodes | None) -> dict[str, Any]:
    """One place: seconds, fingerprints of the steps, hashes of the files."""
    where = {"address": cluster.address, "ship_code": True} if cluster else {"address": "local"}
    file = folder / f"{place}.yaml"
    file.write_text(json.dumps({**where, "execution": {"workers": WORKERS, "threads": 1, "device": "cpu"}, "extract_actors": 2}))
    command = [sys.executable, "-m", "tokenloom.flows.cli.main", "run", recipe, "--no-prefect", "--json", "--cluster", str(file)]
    command += ["--root", str(folder / place), "--store", store]
    began = time.monotonic()
    with open(folder / f"{place}.log", "wb") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, check=False)
    if done.returncode:
        sys.exit(f"{place}: exit {done.returncode}\n{(folder / f'{place}.log').read_text()[-3000:]}")
    seconds = time.monotonic() - began
    steps = {s["name"]: s["fingerprint"] for s in json.loads(done.stdout)["steps"]}
    recorded = [f["path"] for record in Store(store, folder / place).records() for f in record.files]
    wanted = [path for path in recorded if path.endswith((".parquet", ".safetensors"))]
    storage = Storage(store)
    files = {path: hashlib.sha256(storage.read(path)).hexdigest() for path in wanted}
    return {"seconds": round(seconds, 1), "steps": steps, "files": files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="smoke_var")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # nodes and server end with the blocks below
    with tempfile.TemporaryDirectory() as name, nodes.bucket() as keys:
        folder = Path(name)
        os.environ |= keys
        found = {"local disk": run(given.recipe, "disk", folder, str(folder / "store"), None)}
        found["S3"] = run(given.recipe, "s3", folder, "s3://store-bucket/s3", None)
        for label, cpus in (("1 node, S3", [3]), ("3 nodes, S3", [1, 1, 1])):
            with nodes.cluster(cpus, keys) as cluster:
                place = f"nodes{len(cpus)}"
                found[label] = run(given.recipe, place, folder, f"s3://store-bucket/{place}", cluster)
    first = found["local disk"]
    summary = {
        "recipe": given.recipe,
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "workers": WORKERS,
        "seconds": {label: one["seconds"] for label, one in found.items()},
        "fingerprints_equal": all(one["steps"] == first["steps"] for one in found.values()),
        "files_equal": all(one["files"] == first["files"] for one in found.values()),
        "files": len(first["files"]),
        "steps": first["steps"],
    }
    text = json.dumps(summary, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    if not (summary["fingerprints_equal"] and summary["files_equal"]):
        odd = {label: [p for p in first["files"] if one["files"].get(p) != first["files"][p]] for label, one in found.items()}
        sys.exit(f"not the same: {odd}")


if __name__ == "__main__":
    main()
