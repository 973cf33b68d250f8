"""Images: square pictures of 8 bits, grey or RGB, stored as PNG; judged by a classifier of the data, shown as grids."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.core.signals import SignalSpec
from tokenloom.tasks.data import png
from tokenloom.tasks.data.views import parse_views, view_of
from tokenloom.tasks.modalities.base import Card, Fitted, Modality, Rejected, Served
from tokenloom.tasks.runtime.errors import ArtifactError

if TYPE_CHECKING:
    from tokenloom.configs.schema import ClusterConfig, DataConfig
    from tokenloom.tasks.data.listing import Item, Source
    from tokenloom.tasks.runtime.progress import Report
    from tokenloom.tasks.serving.drawing import Pair
    from tokenloom.tasks.store.artifacts import Record, StepSpec, Store, Work

#: What each entry of ``evaluate.metrics`` measures.
MEASURED: dict[str, tuple[str, ...]] = {
    "fd": ("fd",),
    "kid": ("kid",),
    "is": ("is",),
    "precision_recall": ("precision", "recall"),
    "density_coverage": ("density", "coverage"),
    "nll": ("nll_bits_per_image", "nll_bits_per_dim", "bound_bits_per_dim"),
    "recognition": ("recognition",),
    "memorisation": ("memorisation_ratio", "copies"),
    "reconstruction": (
        "rfd",
        "psnr",
        "ssim",
        "detail",
        "codebook_use",
        "codebook_perplexity",
        "bits_per_image",
        "tokens_per_image",
        "encoded_per_second",
        "decoded_per_second",
    ),
    "text": ("text", "text_accuracy"),
}


class Image(Modality):
    """Signals (B, C, H, W) in [-1, 1]; see ``tasks/data/images.py`` for how a raw image is made to fit."""

    kind = "image"
    measured, meanings = MEASURED, ()
    columns = (("image", pa.binary()),)

    def spec(self, config: DataConfig) -> SignalSpec:
        return signals.image(config.size, config.channels)

    def open_source(self, config: DataConfig) -> Source:
        from tokenloom.tasks.data.sources import open_source

        return open_source(config)

    def fit(self, item: Item, config: DataConfig, classes: Mapping[str, int]) -> Fitted | Rejected:
        from tokenloom.tasks.data.images import fit_item

        return fit_item(item, config, classes)

    def notes(self, config: DataConfig, source: Source) -> dict[str, Any]:
        return {"size": config.size, "channels": config.channels}

    def read(self, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (N, H, W, C) and labels int32 (N,); images of different sizes are an error."""
        try:
            table = pq.read_table(io.BytesIO(raw), columns=["image", "label"])
            images = [png.decode(value.as_py()) for value in table["image"]]
            return np.stack(images), table["label"].to_numpy()
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{where}: not a whole image shard ({error})") from error

    def tensor(self, data: np.ndarray) -> Tensor:
        return torch.from_numpy(data).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()

    def view(self, signal: Tensor, name: str) -> Tensor:
        return view_of(signal, name).contiguous()

    def parse_views(self, views: Sequence[str]) -> tuple[str, ...]:
        return parse_views(views)

    def judge(self, step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
        from tokenloom.tasks.evaluation.judge import judge

        return judge(step, store, cluster, report, work)

    def served(self, pair: Pair, dataset: Record) -> Served:
        from tokenloom.tasks import serving
        from tokenloom.tasks.serving.bundle import REQUIRED

        column = pair.asking.column
        numbered = column == "class_id"
        return Served(
            inputs={column: "long" if numbered else "string"},
            outputs={"png_base64": "string"},
            params={
                "seed": ("long", 0),
                "guidance": ("double", float(pair.sampler.guidance.value)),
                "temperature": ("double", float(pair.sampler.temperature.value)),
                "steps": ("long", 0),
            },
            example={column: list(range(len(pair.classes)) if numbered else pair.asking.texts)[:2]},
            code=Path(serving.__file__).parent / "model_def.py",
            packages=(*REQUIRED, *(["transformers"] if pair.asking.encoder is not None else [])),
        )

    def card(self, dataset: Record, evaluation: Record, texts: Sequence[str]) -> Card:
        size, channels = dataset.notes["size"], dataset.notes["channels"]
        classes, protocol = list(evaluation.notes["classes"]), evaluation.notes["protocol"]
        return Card(
            makes=f"Draws {size}x{size} {'grey' if channels == 1 else 'RGB'} images of {len(classes)} classes "
            f"({', '.join(classes[:12])}{', …' if len(classes) > 12 else ''}).",
            items=f"images, fitted by `{dataset.config['data']['fit']}`",
            protocol=f"Protocol: {protocol.get('samples', 0)} samples, classes even, seed {protocol.get('seed', 0)}, against "
            f"{protocol['reference']['images']} held-out images (hash {protocol['reference']['sha256']}); features: "
            f"{protocol['features']['network']} {protocol['features']['sha256']}, trained on this data, so its distances are not FID.",
            commands=("tokenloom sample models:/{name}@challenger --n 100 --out samples.png",),
            interface=f"Input: column `{'text' if texts else 'class_id'}`; parameters `seed`, `guidance`, `temperature`, `steps` "
            "(0: its own); output: column `png_base64`.",
            limits=f"It knows these {len(classes)} classes at {size}x{size} pixels and nothing else. Samples are drawn, not checked: "
            "some are of no class. It was judged on data of the same source only.",
        )


MODALITY = Image()
