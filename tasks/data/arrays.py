"""Folders of ``.npy`` files in the node cache: written whole or not at all, read through memory maps."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.tasks.store.storage import sync_folder


def write_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put arrays into a new folder, one ``NAME.npy`` each; what was there is replaced."""
    filling = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    filling.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(filling / f"{name}.npy", array)
    sizes = {file.name: file.stat().st_size for file in filling.iterdir()}
    (filling / "sizes.json").write_text(json.dumps(sizes))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(filling, folder)
    sync_folder(folder.parent)


def whole(folder: Path) -> bool:
    """Whether a folder holds all that was written into it."""
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def map_array(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file as a private memory map that keeps no file open, so that shards may be many thousands."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        start = file.tell()
    if not all(shape):
        return np.zeros(shape, dtype)
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    array: NDArray[Any] = mapped[start:].view(dtype).reshape(shape)
    array.setflags(write=False)
    return array
