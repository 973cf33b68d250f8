"""The classifier whose features judge images, and that tokenizers may align with: a small network trained on the data itself.

Shapes: B rows, C channels, H W image, D features, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

NAME = "classifier"  # the suffix of every metric made with this network


@dataclass(frozen=True)
class Protocol:
    """Everything that shapes the classifier; it enters the artifact's fingerprint."""

    network: str = NAME
    width: int = 16
    features: int = 64
    side: int = 64  # larger images are averaged down to this many pixels a side
    steps: int = 500
    batch: int = 64
    lr: float = 4e-3
    shift: int = 2  # random translation in pixels, at most
    seed: int = 0


class Classifier(nn.Module):
    """Three strided convolutions, a 4 x 4 average, a layer of features, class logits."""

    def __init__(self, channels: int, classes: int, protocol: Protocol = Protocol()) -> None:
        super().__init__()
        w = protocol.width
        self.side = protocol.side
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, w, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(w, 2 * w, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * w, 4 * w, 3, padding=1),
            nn.GELU(),
        )
        self.features = nn.Linear(4 * w * 16, protocol.features)
        self.logits = nn.Linear(protocol.features, classes)

    @classmethod
    def of(cls, shape: Mapping[str, Any]) -> Classifier:
        """The untrained network of a plain description (``shape_of``)."""
        return cls(shape["channels"], shape["classes"], Protocol(**shape["protocol"]))

    def grid(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to the features of each position (B, 4 width, h, w), before they are averaged."""
        if max(image_BCHW.shape[2:]) > self.side:
            image_BCHW = F.interpolate(image_BCHW, size=(self.side, self.side), mode="area")
        return self.trunk(image_BCHW)

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [-1, 1] to features (B, D) and logits (B, K)."""
        x = F.adaptive_avg_pool2d(self.grid(image_BCHW), 4).flatten(1)
        feature_BD = F.gelu(self.features(x))
        return feature_BD, self.logits(feature_BD)


def shape_of(channels: int, classes: int, protocol: Protocol = Protocol()) -> dict[str, Any]:
    """Plain description of a classifier: what ``classifier.json`` holds, and ``ModelSpec.given["features"]``."""
    return {"channels": channels, "classes": classes, "protocol": asdict(protocol)}


def load_classifier(folder: Path) -> Classifier:
    """The classifier of a folder with ``classifier.json`` and ``classifier.safetensors``, in eval mode."""
    network = Classifier.of(json.loads((folder / "classifier.json").read_text()))
    network.load_state_dict(load_file(str(folder / "classifier.safetensors")))
    return network.eval()
