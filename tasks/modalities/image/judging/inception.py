"""The standard judge of images: Inception's features (``models.parts.nets.inception``) behind the resizes of the published tools.

Shapes: N images, H W C rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from tokenloom.configs.schema import Resize
from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.inception import FEATURES, SIDE, Inception
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store, Work, sha256_of
from tokenloom.tasks.store.official import read_weights

Images = NDArray[np.uint8]
NAME = "inception"
WEIGHTS = "inception.safetensors"
#: Features of a set of images by name: the pool of 2,048, the spatial ones of sFID, and logits for the Inception score.
WANTED = ("2048", "spatial", "logits")
_ROWS = 32


def tensorflow(image_NCHW: Tensor) -> Tensor:
    """TensorFlow 1's bilinear resize, without half-pixel centres and without antialiasing; what ADM's evaluator and torch-fidelity use."""
    for dim in (2, 3):
        size = image_NCHW.shape[dim]
        position = torch.arange(SIDE, device=image_NCHW.device) * (size / SIDE)
        low = position.floor().long()
        share = (position - low).to(image_NCHW.dtype).view(-1, *[1] * (3 - dim))
        below = image_NCHW.index_select(dim, low)
        image_NCHW = below + (image_NCHW.index_select(dim, (low + 1).clamp_max(size - 1)) - below) * share
    return (image_NCHW - 128) / 128


def half_pixel(image_NCHW: Tensor) -> Tensor:
    """Bilinear with half-pixel centres and without antialiasing; what pytorch-fid uses, with its scale of values."""
    return 2 * F.interpolate(image_NCHW / 255, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def bicubic(image_NCHW: Tensor) -> Tensor:
    """Pillow's antialiased bicubic on floats, channel by channel; what clean-fid uses."""
    made = [
        np.stack([np.asarray(Image.fromarray(channel, "F").resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in image])
        for image in image_NCHW.float().cpu().numpy()
    ]
    return (torch.from_numpy(np.stack(made)).to(image_NCHW) - 128) / 128


RESIZES: dict[str, Callable[[Tensor], Tensor]] = {"tensorflow": tensorflow, "half_pixel": half_pixel, "bicubic": bicubic}
assert set(RESIZES) == set(get_args(Resize))


def load(folder: Path, device: str = "cpu") -> Inception:
    """The imported network of a folder, in eval mode."""
    with torch.device("meta"):
        network = Inception()
    network.load_state_dict(load_file(str(folder / WEIGHTS), device=device), assign=True)
    return network.eval().requires_grad_(False)


def converted(path: Path) -> dict[str, Tensor]:
    """A published checkpoint of the network by our names, checked against its shapes; nothing in the file is executed.

    Raises:
        ConfigError: another file, or a TorchScript archive, which would be code.
    """
    given = read_weights(path)
    with torch.device("meta"):
        expected = Inception().state_dict()
    given = {name: value for name, value in given.items() if not name.startswith("AuxLogits.")}
    for name, like in expected.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, torch.zeros((), dtype=torch.long))
        elif name not in given or given[name].shape != like.shape:
            have = "is missing" if name not in given else f"has shape {tuple(given[name].shape)}, expected {tuple(like.shape)}"
            raise ConfigError(f"{path}: {name} {have}; give pytorch-fid's pt_inception-2015-12-05-6726825d.pth or torch-fidelity's")
    if unknown := sorted(given.keys() - expected.keys()):
        raise ConfigError(f"{path}: holds {unknown[0]}, which the network of the Fréchet Inception distance does not have")
    return {name: given[name].contiguous() for name in expected}


def import_network(path: Path, store: Store) -> Outcome:
    """The published checkpoint as an artifact that ``evaluate: {features: inception}`` finds.

    Raises:
        ConfigError: another file.
    """
    step = StepSpec("import", 1, "features", NAME, {"network": NAME, "weights": sha256_of(path)})

    def convert(work: Work) -> dict[str, Any]:
        work.put(WEIGHTS, save(converted(path)))
        work.notes.update(network=NAME, features=FEATURES[WANTED[0]])
        return {}

    return store.execute(step, convert)


@torch.no_grad()
def features(network: Inception, image_NHWC: Images, resize: Resize, wanted: Sequence[str] = WANTED) -> dict[str, NDArray[np.float32]]:
    """Wanted features (N, D) of uint8 images of any size; grey ones count as three equal channels."""
    device = network.fc.weight.device
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted}
    for start in range(0, len(image_NHWC), _ROWS):
        x = torch.from_numpy(np.ascontiguousarray(image_NHWC[start : start + _ROWS])).to(device).permute(0, 3, 1, 2).float()
        found = network(RESIZES[resize](x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x), wanted)
        for name in wanted:
            parts[name].append(found[name].float().cpu().numpy())
    return {name: np.concatenate(part) for name, part in parts.items()}
