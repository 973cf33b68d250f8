"""What is logged as a servable model: both models, how to sample, the code that they need, pinned requirements."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import tasks.serving.drawing
from tasks.artifacts import Artifact, Store
from tasks.serving.drawing import Pair, open_bundle

_REQUIRED = ("mlflow", "torch", "numpy", "pandas", "safetensors", "pillow")
_FILES = ("model.json", "weights.safetensors")


def write_bundle(folder: Path, store: Store, generator: Artifact, tokenizer: Artifact, classes: list[str], sample: dict[str, Any]) -> Pair:
    """Put ``generator/``, ``tokenizer/`` and ``serving.json`` into a new folder, and open it as a server would.

    Raises:
        ArtifactError: a file of one of the models is missing or damaged.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, artifact in (("generator", generator), ("tokenizer", tokenizer)):
        (folder / name).mkdir(parents=True)
        source = store.fetch(artifact, *_FILES)
        for file in _FILES:
            shutil.copyfile(source / file, folder / name / file)
    serving = {"classes": classes, "sample": sample}
    if texts := store.record(generator).notes.get("texts"):
        serving["texts"] = texts
    (folder / "serving.json").write_text(json.dumps(serving, indent=1, sort_keys=True))
    return open_bundle(folder)


def write_code(folder: Path) -> list[Path]:
    """Copy the packages that a served model imports (``models`` and ``tasks.serving``); the folders to log as its code."""
    here = Path(tasks.serving.drawing.__file__).resolve().parent
    project = here.parent.parent
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(project / "models", folder / "models", ignore=ignore)
    shutil.copytree(here, folder / "tasks" / "serving", ignore=ignore)
    shutil.copyfile(project / "tasks" / "__init__.py", folder / "tasks" / "__init__.py")
    return [folder / "models", folder / "tasks"]


def requirements(pair: Pair) -> list[str]:
    """The installed versions of what serving needs, as pip reads them (a build's local part, ``+cpu``, is left out)."""
    names = [*_REQUIRED, *(["transformers"] if pair.asking.encoder is not None else [])]
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
