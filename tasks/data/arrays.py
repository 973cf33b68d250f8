"""Folders of ``.npy`` files in the node cache: written whole or not at all, read through memory maps."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.tasks.store.storage import sync_folder

_IN_MEMORY = 1 << 28  # bytes of a scratch array that is no file


def write_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], files: Mapping[str, Sequence[bytes]] | None = None) -> None:
    """Put arrays into a new folder, one ``NAME.npy`` each, and files of bytes one after another; what was there is replaced."""
    filling = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    filling.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(filling / f"{name}.npy", array)
    for name, parts in (files or {}).items():
        with open(filling / name, "wb") as file:
            file.writelines(parts)
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


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and type of a ``.npy`` file, and where its numbers begin."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        return shape, dtype, file.tell()


def map_array(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file as a private memory map that keeps no file open, so that shards may be many thousands."""
    shape, dtype, start = _header(path)
    if not all(shape):
        return np.zeros(shape, dtype)
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    array: NDArray[Any] = mapped[start:].view(dtype).reshape(shape)
    array.setflags(write=False)
    return array


def grown(path: Path, shape: tuple[int, ...] | None = None, dtype: Any = None) -> NDArray[Any]:
    """A ``.npy`` file that several processes fill, mapped and shared: made with holes for this shape and type, or opened.

    Raises:
        OSError: missing.
        ValueError: cut short, or no such file.
    """
    if shape is None:
        shape, dtype, start = _header(path)
        size, expected = path.stat().st_size, start + int(np.prod(shape)) * dtype.itemsize
        if size != expected:
            raise ValueError(f"{path}: {size} bytes, {expected} are expected")
        return np.asarray(np.lib.format.open_memmap(path, mode="r+"))  # a map makes a map of each selection: slow
    filling = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    np.lib.format.open_memmap(filling, mode="w+", dtype=dtype, shape=shape)
    os.replace(filling, path)
    return grown(path)


def scratch(folder: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An empty array of this process: in memory, or where that would be much of it, in a file that goes with the array."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= _IN_MEMORY:
        return np.empty(shape, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
