"""Weights of the Inception network and images, both from seeds alone, for numbers that another tool has computed from them.

Run as a script in an environment that has torch-fidelity (and the torchvision that fits its torch), it writes those numbers:
``python tests/support/inception_golden.py SHAPES.json OUT.npz``.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parents[1] / "fixtures" / "inception"
COUNT = 2048  # images of either set
FEW = 8  # of which all features are kept
SCORED = 64  # of which the Inception score is taken


def weights(shapes: dict[str, list[int]]) -> dict[str, NDArray]:
    """Random weights by name: variances are kept from layer to layer, so that no feature dies out."""
    made: dict[str, NDArray] = {}
    for name, shape in shapes.items():
        draw = np.random.Generator(np.random.PCG64([7, zlib.crc32(name.encode())]))
        match name.rsplit(".", 2)[-2:]:
            case ["bn", "weight" | "running_var"]:
                made[name] = draw.uniform(0.5, 1.5, shape).astype(np.float32)
            case ["bn", "bias" | "running_mean"]:
                made[name] = 0.1 * draw.standard_normal(shape).astype(np.float32)
            case [_, "num_batches_tracked"]:
                made[name] = np.zeros(shape, np.int64)
            case _:
                scale = np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
                made[name] = (scale * draw.standard_normal(shape)).astype(np.float32)
    return made


def images(which: int, count: int = COUNT, rows: int = 32, columns: int = 32) -> NDArray[np.uint8]:
    """(count, 3, rows, columns) of one of two sets: coarse patches of colour with noise, the second set darker and rougher."""
    draw = np.random.Generator(np.random.PCG64([11, which, rows, columns]))
    coarse = draw.integers(0, 256 - 60 * which, (count, 3, 4, 4)).repeat(rows // 4, 2).repeat(columns // 4, 3)
    return np.clip(coarse + draw.integers(-20 - 20 * which, 21 + 20 * which, coarse.shape), 0, 255).astype(np.uint8)


def main(shapes: str, out: str) -> None:
    """Compute the numbers with torch-fidelity."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    state = Path(out).with_suffix(".pth")
    torch.save({name: torch.from_numpy(value) for name, value in weights(json.loads(Path(shapes).read_text())).items()}, state)
    names = ["64", "192", "768", "2048", "logits_unbiased"]

    def features(image: NDArray, wanted: list[str]) -> list[torch.Tensor]:
        network = FeatureExtractorInceptionV3("golden", wanted, feature_extractor_weights_path=str(state))
        with torch.no_grad():
            parts = [network(torch.from_numpy(image[start : start + 16])) for start in range(0, len(image), 16)]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    found: dict[str, NDArray] = {}
    for key, few in (("square", images(0, FEW)), ("wide", images(1, FEW, 24, 320))):
        found |= {f"{key}/{name}": value.numpy() for name, value in zip(names, features(few, names), strict=True)}
    (logits,) = features(images(0, SCORED), ["logits_unbiased"])
    score = isc_features_to_metric(logits)
    fake, real = features(images(0), ["64"])[0], features(images(1), ["64"])[0]
    statistics = [fid_features_to_statistics(x) for x in (fake, real)]
    distance = fid_statistics_to_metric(*statistics, verbose=False)
    kernel = kid_features_to_metric(fake, real, verbose=False)
    manifold = prc_features_to_metric(fake, real, verbose=False)
    for name, value in {**score, **distance, **kernel, **manifold}.items():
        found[f"metric/{name}"] = np.float64(value)
    np.savez_compressed(out, **found)
    state.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
