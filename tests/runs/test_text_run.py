"""A generator with text conditions through the whole pipeline, then sampled and served by its captions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenloom.tasks.store.artifacts import Store

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(900)]


def tokenloom(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TOKENLOOM_ROOT": str(root), "PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("TOKENLOOM_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-m", "tokenloom.flows.cli.main", *arguments], capture_output=True, text=True, cwd=root, env=environment
    )


def test_captions_go_all_the_way(tmp_path: Path) -> None:
    done = tokenloom(tmp_path, "run", "smoke_text", "--no-prefect", "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    made = json.loads(done.stdout)
    assert np.isfinite(made["metrics"]["nll_bits_per_image"])
    store = Store(str(tmp_path / "store"), tmp_path)
    evaluation = store.record(store.resolve("smoke-text", "evaluation"))
    with np.load(store.fetch(evaluation.artifact) / "samples.npz") as arrays:
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        assert arrays["texts"].tolist() == [f"a handwritten {names[k]}" for k in arrays["labels"]]
    texts = ("--text", "a handwritten seven", "--text", "a handwritten two")
    done = tokenloom(tmp_path, "sample", made["model"], *texts, "--n", "6", "--seed", "3", "--out", "a.npz", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["texts"] == ["a handwritten seven", "a handwritten two"]
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["images"].shape == (6, 32, 32, 1)
    served = (
        "import mlflow, pandas\n"
        f"mlflow.set_tracking_uri('sqlite:///{tmp_path}/mlflow.db')\n"
        f"model = mlflow.pyfunc.load_model({made['model']!r})\n"
        "asked = pandas.DataFrame({'text': ['a handwritten seven'] * 2})\n"
        "first, again = (model.predict(asked, params={'seed': 5}) for _ in range(2))\n"
        "assert first.equals(again) and len(first) == 2\n"
        "print(first.columns.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", served], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['png_base64']"
    done = tokenloom(tmp_path, "plan", "smoke_text", "--json")
    assert {step["status"] for step in json.loads(done.stdout)["steps"]} == {"cached"}
