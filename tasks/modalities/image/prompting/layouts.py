"""Images of prompts in the folders that GenEval (arXiv:2310.11513), DPG-Bench (arXiv:2403.05135) and HPS v2 (arXiv:2306.09341) read.

``geneval``: ``00000/samples/00000.png`` with ``metadata.jsonl`` and ``grid.png``; ``dpg``: ``ITEM.png``, the images of a prompt in a grid
of two columns; ``hps``: ``STYLE/00000.jpg``; ``plain``: ``00000.png``, or ``00000-0.png`` of several.  What was drawn how stands beside the
folder, in ``FOLDER.jsonl``: the programs take every file of a folder for an image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.config import ConfigError
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.modalities.base import SampleRequest
from tokenloom.tasks.modalities.image import pictures
from tokenloom.tasks.modalities.image.prompting.files import EACH, Prompt, Prompts, read
from tokenloom.tasks.modalities.image.served.draw import SHARD, traced_images
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import Request

_QUALITY = 95  # of JPEG files


def draw_prompts(pair: Pair, title: str, given: SampleRequest, report: Report) -> dict[str, Any]:
    """Draw the prompts of a file into the layout of its benchmark, ``given.each`` images a prompt.

    Sample ``i * each + j`` of the request's seed is image ``j`` of prompt ``i``, however many are drawn at once.

    Raises:
        ConfigError: a model of classes, a prompt that is longer than the model reads, a folder with something in it.
    """
    assert given.prompts is not None, "a request of prompts"
    out, found = given.out, read(given.prompts, given.rewrites)
    each = given.each or EACH[found.layout]
    _check(pair, title, given, found, each)
    total, rows = len(found.prompts) * each, max(1, SHARD // each) * each
    record = out.with_name(out.name + ".jsonl")
    out.mkdir(parents=True, exist_ok=True)
    with record.open("w", encoding="utf-8") as file:
        file.write(json.dumps(_head(pair, title, given, found, each)) + "\n")
        for start in range(0, total, rows):
            report("sample", start, total, {})
            part = found.prompts[start // each : (start + rows) // each]
            texts = [prompt.drawn for prompt in part for _ in range(each)]
            condition = pair.condition_spec.conditions(Request(None, texts))
            images = traced_images(pair.generator, pair.tokenizer, condition, pair.sampler, given.seed, start)[0]
            for at, prompt in enumerate(part):
                for path, number in _write(out, found.layout, prompt, images[at * each : (at + 1) * each]):
                    drawn = {"prompt": prompt.text, "drawn": prompt.drawn, "seed": given.seed, "number": start + at * each + number}
                    file.write(json.dumps({"file": path, **drawn}) + "\n")
    report("sample", total, total, {})
    counts = {"prompts": len(found.prompts), "each": each, "samples": total, "seed": given.seed}
    return {"model": title, "out": str(out), "record": str(record), "layout": found.layout, **counts}


def _check(pair: Pair, title: str, given: SampleRequest, found: Prompts, each: int) -> None:
    spec = pair.condition_spec
    if not spec.texted or spec.labelled or spec.columns:
        raise ConfigError(f"--prompts: {title} is not conditioned on texts alone")
    if given.texts or any(each is not None for each in (given.classes, given.inpaint, given.prefix)):
        raise ConfigError("--prompts: goes with none of --text, --classes, --inpaint and --prefix")
    if found.layout == "dpg" and each not in (1, 4):
        raise ConfigError(f"--each {each}: DPG-Bench reads one image a prompt, or four in a square")
    if found.layout == "hps" and each != 1:
        raise ConfigError(f"--each {each}: HPS reads one image a prompt")
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise ConfigError(f"--out {given.out}: is there and not an empty folder; the layouts allow no other files")
    for prompt in found.prompts:  # before anything is drawn
        try:
            spec.check(Request(None, [prompt.drawn]))
        except ConfigError as error:
            raise ConfigError(f"--prompts {given.prompts}: {prompt.name} ({prompt.drawn[:40]!r}): {error}") from error


def _head(pair: Pair, title: str, given: SampleRequest, found: Prompts, each: int) -> dict[str, Any]:
    sampler = pair.sampler
    plain = sampler.to_dict() if isinstance(sampler, Sampler) else asdict(sampler)
    about = {"model": title, "layout": found.layout, "each": each, "seed": given.seed, "sampler": plain}
    return about | {"prompts": str(given.prompts), "rewrites": None if given.rewrites is None else str(given.rewrites)}


def _write(out: Path, layout: str, prompt: Prompt, image_NHWC: NDArray[np.uint8]) -> Iterator[tuple[str, int]]:
    """Write the images of one prompt; the file of each, as the layout calls it, and its number."""
    if layout == "geneval":
        folder = out / prompt.name / "samples"
        folder.mkdir(parents=True)
        (folder.parent / "metadata.jsonl").write_text(json.dumps(prompt.about))
        (folder.parent / "grid.png").write_bytes(pictures.png(_grid(image_NHWC)))
        for number, image in enumerate(image_NHWC):
            (folder / f"{number:05d}.png").write_bytes(pictures.png(image))
            yield f"{prompt.name}/samples/{number:05d}.png", number
    elif layout == "dpg":
        (out / f"{prompt.name}.png").write_bytes(pictures.png(_grid(image_NHWC)))
        yield from ((f"{prompt.name}.png", number) for number in range(len(image_NHWC)))
    elif layout == "hps":
        path = out / f"{prompt.name}.jpg"
        path.parent.mkdir(exist_ok=True)
        _jpeg(path, image_NHWC[0])
        yield f"{prompt.name}.jpg", 0
    else:
        for number, image in enumerate(image_NHWC):
            name = f"{prompt.name}.png" if len(image_NHWC) == 1 else f"{prompt.name}-{number}.png"
            (out / name).write_bytes(pictures.png(image))
            yield name, number


def _grid(image_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images in two columns without space between them, left to right, then down: where DPG-Bench cuts them apart."""
    columns = min(2, len(image_NHWC))
    blank = np.zeros((-len(image_NHWC) % columns, *image_NHWC.shape[1:]), np.uint8)
    N, H, W, C = (every := np.concatenate([image_NHWC, blank])).shape
    return every.reshape(N // columns, columns, H, W, C).transpose(0, 2, 1, 3, 4).reshape(N // columns * H, columns * W, C)


def _jpeg(path: Path, image_HWC: NDArray[np.uint8]) -> None:
    from PIL import Image

    Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC).save(path, "JPEG", quality=_QUALITY)
