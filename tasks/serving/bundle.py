"""What is logged as a servable model: both models, how to sample, the code that they need, pinned requirements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenloom.tasks.serving.drawing
from tokenloom.tasks.serving.drawing import Pair, open_bundle
from tokenloom.tasks.store.artifacts import Artifact, Store

REQUIRED = ("mlflow", "torch", "numpy", "pandas", "safetensors", "pillow")
_FILES = ("model.json", "weights.safetensors")


def write_bundle(
    folder: Path,
    store: Store,
    models: Mapping[str, Artifact],
    classes: list[str],
    sample: dict[str, Any],
    known: Mapping[str, Any] = MappingProxyType({}),
) -> Pair:
    """Put a folder for each model, named by its role, and ``serving.json`` into a new folder, and open it as a server would.

    ``known`` is what the kind of signal adds to ``serving.json``.

    Raises:
        ArtifactError: a file of one of the models is missing or damaged.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, artifact in models.items():
        (folder / name).mkdir(parents=True)
        source = store.fetch(artifact, *_FILES)
        for file in _FILES:
            shutil.copyfile(source / file, folder / name / file)
    serving = {"classes": classes, "sample": sample, **known}
    if texts := next((found for artifact in models.values() if (found := store.record(artifact).notes.get("texts"))), None):
        serving["texts"] = texts
    (folder / "serving.json").write_text(json.dumps(serving, indent=1, sort_keys=True))
    return open_bundle(folder)


def write_code(folder: Path, rooms: Sequence[Path] = ()) -> list[Path]:
    """Copy what a served model imports (``tokenloom.models``, ``tokenloom.tasks.serving`` and ``rooms``); the folders to log as its code.

    ``rooms`` are further packages below ``tasks``; of the packages above them only the docstrings go along.
    """
    here = Path(tokenloom.tasks.serving.drawing.__file__).resolve().parent
    project = here.parent.parent
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    package = folder / "tokenloom"
    shutil.copytree(project / "models", package / "models", ignore=ignore)
    shutil.copytree(here, package / "tasks" / "serving", ignore=ignore)
    shutil.copyfile(project / "tasks" / "__init__.py", package / "tasks" / "__init__.py")
    for room in rooms:
        inside = room.resolve().relative_to(project)
        shutil.copytree(room, package / inside, ignore=ignore)
        for parent in list(inside.parents)[:-2]:
            (package / parent / "__init__.py").write_text('"""Part of a served model."""\n')
    return [package]


def requirements(packages: Sequence[str]) -> list[str]:
    """The installed versions of what serving needs, as pip reads them (a build's local part, ``+cpu``, is left out)."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in packages]
