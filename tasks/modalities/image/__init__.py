"""Images: pictures of 8 bits, grey or RGB, stored as PNG; judged by a classifier of the data, shown as grids."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tokenloom.models.core import signals
from tokenloom.models.core.augmentation import Augmentation
from tokenloom.models.core.signals import Shape, SignalSpec
from tokenloom.tasks.modalities import signal_of
from tokenloom.tasks.modalities.base import Card, Fitted, Modality, Rejected, SampleRequest, Served
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.modalities.image.augmentation import DRAWS, centred, several
from tokenloom.tasks.modalities.image.decode import decode
from tokenloom.tasks.modalities.image.judging.meanings import CARD, COMPARISON, MEANINGS, MEASURED
from tokenloom.tasks.modalities.image.views import parse_views, view_of
from tokenloom.tasks.runtime.errors import ArtifactError, MixedSizesError

if TYPE_CHECKING:
    from tokenloom.configs.schema import ClusterConfig, DataConfig, EvaluateConfig
    from tokenloom.tasks.data.listing import Item, Source
    from tokenloom.tasks.runtime.progress import Report
    from tokenloom.tasks.serving.predict import Pair
    from tokenloom.tasks.serving.request import ConditionSpec
    from tokenloom.tasks.store.artifacts import Artifact, Outcome, Record, StepSpec, Store, Work


class Image(Modality):
    """Signals (B, C, H, W) in [-1, 1]; see ``fit.py`` for how a raw image is made to fit."""

    kind, noun = "image", "images"
    measured, meanings, comparison = MEASURED, MEANINGS, COMPARISON
    columns = (("image", pa.binary()),)
    encodes, draws = True, DRAWS

    def spec(self, config: DataConfig) -> SignalSpec:
        rows, columns = config.shape
        return signals.image(rows, config.channels, columns)

    def least_held_out(self, config: EvaluateConfig) -> int:
        return config.neighbours + 2

    def open_source(self, config: DataConfig) -> Source:
        from tokenloom.tasks.modalities.image.sources import open_source

        return open_source(config)

    def fit(self, item: Item, config: DataConfig, classes: Mapping[str, int]) -> Fitted | Rejected:
        from tokenloom.tasks.modalities.image.fit import fit_item

        return fit_item(item, config, classes)

    def notes(self, config: DataConfig, source: Source) -> dict[str, Any]:
        if isinstance(config.size, int):
            return {"size": config.size, "channels": config.channels}
        return {"signal": self.spec(config).to_dict()}

    def read(self, raw: bytes, where: str, shape: Shape | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (N, H, W, C) and labels int32 (N,); with a ``shape`` the middle of images that are stored larger."""
        items, labels = self.encoded(raw, where)
        try:
            images = [self._fitting(decode(item), shape) for item in items]
        except ValueError as error:
            raise ArtifactError(f"{where}: not a whole image shard ({error})") from error
        if len({image.shape for image in images}) > 1:
            raise MixedSizesError(f"{where}: not a whole image shard (its images have different sizes)")
        return np.stack(images), labels

    def encoded(self, raw: bytes, where: str) -> tuple[list[bytes], np.ndarray]:
        try:
            table = pq.ParquetFile(io.BytesIO(raw)).read(["image", "label"])
            return table["image"].to_pylist(), table["label"].to_numpy()
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{where}: not a whole image shard ({error})") from error

    def items(
        self,
        stored: np.ndarray | Sequence[bytes],
        shape: Shape | None = None,
        augmentation: Augmentation | None = None,
        u_BN: np.ndarray | None = None,
        pool: Executor | None = None,
    ) -> np.ndarray:
        """Images uint8 (B, H, W, C) of the signal's ``shape``."""
        try:
            return several(stored, shape, augmentation, u_BN, pool)
        except ValueError as error:
            raise ArtifactError(f"an image in the node's cache cannot be read: {error}") from error

    @staticmethod
    def _fitting(image_HWC: np.ndarray, shape: Shape | None) -> np.ndarray:
        if shape is None or image_HWC.shape[:2] == shape:
            return image_HWC
        return centred(image_HWC, shape)

    def tensor(self, data: np.ndarray | Tensor) -> Tensor:
        image_BHWC = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
        return image_BHWC.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()

    def view(self, signal: Tensor, name: str) -> Tensor:
        return view_of(signal, name).contiguous()

    def parse_views(self, views: Sequence[str]) -> tuple[str, ...]:
        return parse_views(views)

    def column(self, value: bytes) -> np.ndarray:
        return decode(value)

    def picture(self, drawn: Tensor) -> bytes:
        """PNG of one image (C, H, W), or of a row-wise grid of images (B, C, H, W), in [-1, 1]."""
        if drawn.ndim == 4:
            columns = max(1, round(len(drawn) ** 0.5))
            rows = -(-len(drawn) // columns)
            blank = drawn.new_full((rows * columns - len(drawn), *drawn.shape[1:]), -1.0)
            _, C, H, W = drawn.shape
            drawn = torch.cat([drawn, blank]).view(rows, columns, C, H, W).permute(2, 0, 3, 1, 4).reshape(C, rows * H, columns * W)
        pixels = ((drawn.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return png.encode(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))

    def plan_features(self, dataset: Artifact, config: EvaluateConfig, store: Store) -> StepSpec:
        from tokenloom.tasks.modalities.image.judging.features import plan_features

        return plan_features(dataset, config, store)

    def features(self, step: StepSpec, store: Store, report: Report) -> Outcome:
        from tokenloom.tasks.modalities.image.judging.features import features

        return features(step, store, report)

    def import_network(self, name: str, weights: Path, store: Store) -> Outcome | None:
        from tokenloom.tasks.modalities.image.judging import inception

        return inception.import_network(weights, store) if name == inception.NAME else None

    def sample(self, pair: Pair, title: str, request: SampleRequest, store: Store, report: Report) -> dict[str, Any]:
        from tokenloom.tasks.modalities.image.sampling import sample

        return sample(pair, title, request, store, report)

    def side_by_side(self, store: Store, judged: Sequence[tuple[str, Artifact]]) -> dict[str, bytes]:
        from tokenloom.tasks.modalities.image.judging.side_by_side import side_by_side

        return side_by_side(store, judged)

    def judge(self, step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
        from tokenloom.tasks.modalities.image.judging.judge import judge

        return judge(step, store, cluster, report, work)

    def served(self, pair: Pair, dataset: Record) -> Served:
        from tokenloom.tasks.modalities.image.served.options import parameters
        from tokenloom.tasks.serving.bundle import REQUIRED

        condition_spec, room = pair.condition_spec, Path(__file__).parent / "served"
        return Served(
            inputs={name: "long" if name == "class_id" else "string" for name in condition_spec.inputs},
            outputs={"png_base64": "string"},
            params=parameters(pair),
            example=_example(condition_spec),
            code=room / "model_def.py",
            packages=(*REQUIRED, *(["transformers"] if pair.condition_spec.encoder is not None else [])),
            rooms=(room,),
        )

    def web(self, pair: Pair, title: str, rows: int, waiting: int) -> Any:
        from tokenloom.tasks.modalities.image.served.http import app

        return app(pair, title, rows, waiting)

    def serving(self, dataset: Record) -> dict[str, Any]:
        return {"fit": dataset.config["data"]["fit"]}

    def card(self, dataset: Record, evaluation: Record, texts: Sequence[str]) -> Card:
        signal = SignalSpec.from_dict(signal_of(dataset.notes))
        size, channels = signals.text(signal.shape), signal.channels
        from tokenloom.tasks.modalities.image.served.options import INTERFACE

        classes, protocol = list(evaluation.notes["classes"]), evaluation.notes["protocol"]
        ceiling = evaluation.metrics.get("recognition_ceiling")
        inputs = evaluation.notes.get("inputs") or ["text" if texts else "class_id"]
        columns = "".join(f" --column {name}=FILE.png" for name in inputs if name not in ("class_id", "text"))
        return Card(
            makes=f"Draws {size} {'grey' if channels == 1 else 'RGB'} images of {len(classes)} classes "
            f"({', '.join(classes[:12])}{', …' if len(classes) > 12 else ''}).",
            items=f"images, fitted by `{dataset.config['data']['fit']}`",
            protocol=f"Protocol: {protocol.get('samples', 0)} samples, classes even, seed {protocol.get('seed', 0)}, against "
            f"{protocol['reference']['images']} held-out images (hash {protocol['reference']['sha256']}); features: "
            f"{protocol['features']['network']} {protocol['features']['sha256']}, trained on this data, so its distances are not FID.",
            commands=(f"tokenloom sample models:/{{name}}@challenger{columns} --n 100 --out samples.png",),
            interface=f"Input: {_inputs(inputs)}; {INTERFACE}; output: column `png_base64`.",
            limits=f"It knows these {len(classes)} classes at {size} pixels and nothing else. Samples are drawn, not checked: "
            "some are of no class. It was judged on data of the same source only.",
            shown=CARD,
            remarks=[] if ceiling is None else [f"The recognising machine itself is right on {ceiling:.1%} of held-out real images."],
        )


def _example(condition_spec: ConditionSpec) -> dict[str, list[Any]]:
    """Two rows of a request: its first classes and texts, with grey images in the columns of the data."""
    from tokenloom.tasks.modalities.image.served.draw import png_base64

    known = {"class_id": range(max(1, len(condition_spec.classes))), "text": condition_spec.texts or ("",)}
    rows = min([2, *(len(known[name]) for name in condition_spec.inputs if name in known)])
    given: dict[str, list[Any]] = {name: list(values[:rows]) for name, values in known.items()}
    for name, (channels, height, width) in condition_spec.columns.items():
        given[name] = [png_base64(np.full((height, width, channels), 128, np.uint8))] * rows
    return {name: given[name] for name in condition_spec.inputs}


def _inputs(names: Sequence[str]) -> str:
    """The columns of a request in words."""
    return ", ".join(f"column `{name}`" + ("" if name in ("class_id", "text") else " (PNG as base64 text)") for name in names)


MODALITY = Image()
