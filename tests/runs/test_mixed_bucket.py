"""Files of every kind in a bucket, cropped and mirrored, on two workers, judged by FID; killed and resumed it is the same to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from inception_golden import weights
from mixed_images import broken, whole

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(7200)]
TRAIN = {"steps": 6, "batch": 8, "log_every": 2, "validate_every": 3, "checkpoint_every": 2}
BUCKET = "mixed"


@pytest.fixture(scope="module")
def client() -> Any:
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "t", "AWS_SECRET_ACCESS_KEY": "t", "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        made = boto3.client("s3", region_name="us-east-1")
        made.create_bucket(Bucket=BUCKET)
        yield made
    server.stop()


def held(client: Any, prefix: str) -> dict[str, Any]:
    """Objects below a prefix by what follows it; the empty markers that stand for folders are none."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return {each["Key"].removeprefix(prefix): each for page in pages for each in page.get("Contents", []) if not each["Key"].endswith("/")}


def contents(client: Any, prefix: str) -> dict[str, str]:
    """SHA-256 of each shard and of each weights file of a store; MLflow's copies lie below ids that it draws."""
    names = [name for name in held(client, prefix) if name.endswith((".parquet", "weights.safetensors")) and not name.startswith("mlflow/")]
    return {name: hashlib.sha256(client.get_object(Bucket=BUCKET, Key=prefix + name)["Body"].read()).hexdigest() for name in names}


def run_file(folder: Path) -> list[str]:
    np.savez_compressed(
        folder / "reference.npz",
        mu=np.zeros(2048, np.float32),
        sigma=np.eye(2048, dtype=np.float32),
        mu_s=np.zeros(2023, np.float32),
        sigma_s=np.eye(2023, dtype=np.float32),
    )
    augment = {"random_resized_crop": {"area": [0.3, 1.0]}, "flip": 0.5}
    run = {
        "name": "mixed",
        "data": {
            **{"source": f"s3://{BUCKET}/data", "size": 64, "channels": 3, "fit": "crop", "store_scale": 1.25, "encode": "jpeg"},
            **{"validation": 0.25, "shard_rows": 16},
        },
        "tokenizer": {
            "recipe": "vq",
            "args": {"codes": 16, "channels": 8, "multipliers": [1, 1, 2, 2], "patch": 1},
            "train": TRAIN | {"augment": augment},
        },
        "generator": {"recipe": "raster", "args": {"width": 32, "depth": 1, "heads": 2}, "train": TRAIN},
        "evaluate": {
            "features": "inception",
            "metrics": ["fd", "sfid"],
            "samples": 20,
            "shard": 10,
            "reference": str(folder / "reference.npz"),
        },
        "register": {"gate": "fid"},
    }
    run["data"]["source"] = f"folder:{run['data']['source']}"
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    two = {"execution": {"workers": 2, "device": "cpu"}, "extract_actors": 2, "ingest_actors": 2}
    (folder / "two.yaml").write_text(yaml.safe_dump(two))
    return ["run", str(folder / "run.yaml"), "--cluster", str(folder / "two.yaml"), "--no-prefect", "--json"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tokenloom.flows.cli.main", *arguments]


def test_a_bucket_of_files_of_every_kind(client: Any, tmp_path: Path) -> None:
    import torch

    from benchmarks.kill_and_resume import MARK, kill_tree
    from tokenloom.models.parts.nets.inception import Inception

    for label in ("disc", "box"):
        for number in range(4):
            for end, data in [*whole(2 * number + (label == "disc")), *(broken(number) if number == 0 else [])]:
                client.put_object(Bucket=BUCKET, Key=f"data/{label}/{number}{end}", Body=data)
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in Inception().state_dict().items()}
    torch.save({name: torch.from_numpy(value) for name, value in weights(shapes).items()}, tmp_path / "inception.pth")
    given = run_file(tmp_path)

    def done(name: str) -> dict[str, Any]:
        places = ["--store", f"s3://{BUCKET}/{name}", "--root", str(tmp_path / name)]
        finished = subprocess.run(command(*given, *places), capture_output=True, text=True, timeout=2400)
        assert finished.returncode == 0, finished.stderr[-3000:]
        return json.loads(finished.stdout)

    for name in ("whole", "killed"):
        places = ["--store", f"s3://{BUCKET}/{name}", "--root", str(tmp_path / name)]
        imported = subprocess.run(command("import", "inception", str(tmp_path / "inception.pth"), *places), capture_output=True, text=True)
        assert imported.returncode == 0, imported.stderr[-2000:]
    first = done("whole")
    assert {step["name"]: step["status"] for step in first["steps"] if step["name"] != "features"} == dict.fromkeys(
        ("ingest", "train_tokenizer", "extract", "train_generator", "evaluate", "register"), "ran"
    )
    (judged,) = [key for key in held(client, "whole/evaluation/") if key.endswith("/record.json")]
    metrics = json.loads(client.get_object(Bucket=BUCKET, Key=f"whole/evaluation/{judged}")["Body"].read())["metrics"]
    assert np.isfinite(metrics["fid"])
    assert np.isfinite(metrics["sfid"])
    records = [key for key in held(client, "whole/dataset/") if key.endswith("/record.json")]
    dataset = json.loads(client.get_object(Bucket=BUCKET, Key=f"whole/dataset/{records[0]}")["Body"].read())
    assert dataset["metrics"]["rejected"] == 2 * len(list(broken(0)))
    assert dataset["metrics"]["train"] + dataset["metrics"]["validation"] == 8 * len(list(whole(0)))
    assert dataset["notes"]["classes"] == ["box", "disc"]

    # Killed while it ingests and while either model trains; each time when something was made of that phase.
    places = ["--store", f"s3://{BUCKET}/killed", "--root", str(tmp_path / "killed")]
    for phase in ("killed/.staging/", "killed/tokenizer/", "killed/generator/"):
        with open(tmp_path / "killed.log", "a") as log:
            process = subprocess.Popen(
                command(*given, *places), env=os.environ | {MARK: "mixed"}, stdout=log, stderr=log, start_new_session=True
            )
        started = time.monotonic()
        while not held(client, phase) and process.poll() is None and time.monotonic() - started < 1800:
            time.sleep(0.05)
        assert process.poll() is None, (tmp_path / "killed.log").read_text()[-3000:]
        kill_tree("mixed")
        process.wait()
    second = done("killed")
    assert [step["fingerprint"] for step in second["steps"]] == [step["fingerprint"] for step in first["steps"]]
    assert contents(client, "killed/") == contents(client, "whole/")
    assert not held(client, "killed/.staging/")
