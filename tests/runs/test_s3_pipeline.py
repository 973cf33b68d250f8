"""The whole chain with a store on object storage (a server on loopback): artifacts, tracked files, and a second run that does nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from tokenloom.tasks.modalities.image import png

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(900)]
TRAIN = {"steps": 4, "batch": 8, "log_every": 1, "validate_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[dict[str, str]]:
    """Environment that points at a server with an empty bucket."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (given | {"AWS_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="whole-chain")
        yield given | {"AWS_REGION": "us-east-1"}
    server.stop()


def keys() -> set[str]:
    import boto3

    pages = boto3.client("s3", region_name="us-east-1").get_paginator("list_objects_v2").paginate(Bucket="whole-chain")
    return {each["Key"] for page in pages for each in page.get("Contents", [])}


def command(environment: dict[str, str], *arguments: str) -> tuple[dict[str, object], float]:
    """What a command prints as JSON, and the seconds of processor that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "tokenloom.flows.cli.main", *arguments, "--store", "s3://whole-chain/store", "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | environment,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_whole_chain_on_object_storage(endpoint: dict[str, str], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "images" / "abcd"[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.encode(draw.integers(0, 255, (8, 8, 1), np.uint8)))
    run = {
        "name": "on-s3",
        "data": {"source": f"folder:{tmp_path}/images", "size": 8, "fit": "pad", "validation": 0.25, "shard_rows": 16},
        "tokenizer": {"recipe": "vq", "args": {"codes": 8, "channels": 8, "multipliers": [1, 2], "patch": 2}, "train": TRAIN},
        "evaluate": {"metrics": ["reconstruction"]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"execution": {"workers": 1, "device": "cpu"}, "extract_actors": 1}))
    given = ["run", str(tmp_path / "run.yaml"), "--cluster", str(tmp_path / "one.yaml")]
    first, _ = command(endpoint, *given, "--root", str(tmp_path / "root"), "--no-prefect")
    steps = {step["name"]: step["status"] for step in first["steps"]}
    assert steps == dict.fromkeys(("ingest", "train_tokenizer", "extract", "features", "evaluate"), "ran")
    assert all(step["uri"].startswith("s3://whole-chain/store/") for step in first["steps"])
    there = keys()
    assert any("/checkpoints/step-0000004/state.safetensors" in key for key in there)
    assert any(key.startswith("store/mlflow/on-s3/") and key.endswith(".png") for key in there), "MLflow's files lie beside the artifacts"
    assert not any("/.leases/" in key and key.endswith(".json") for key in there)

    # Another machine: an empty root, the same store. Nothing is done, and little is needed to see that.
    again, seconds = command(endpoint, *given, "--root", str(tmp_path / "elsewhere"))
    assert {step["status"] for step in again["steps"]} == {"cached"}
    assert [step["fingerprint"] for step in again["steps"]] == [step["fingerprint"] for step in first["steps"]]
    assert seconds < 15
    found, _ = command(endpoint, "doctor", "--verify", "--root", str(tmp_path / "elsewhere"))
    assert next(check for check in found["checks"] if check["check"] == "artifacts")["ok"], found
    assert keys() == there | {key for key in keys() if key.endswith("/")}, "looking changes nothing"
