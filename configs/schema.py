"""The run file: one YAML document, checked before any work starts.

Every field is marked ``Identity`` (it shapes an artifact and enters its fingerprint) or ``Execution``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tokenloom.configs.evaluation import DENSITY_METRICS as DENSITY_METRICS
from tokenloom.configs.evaluation import METRICS as METRICS
from tokenloom.configs.evaluation import TOKENIZER_METRICS as TOKENIZER_METRICS
from tokenloom.configs.evaluation import EvaluateConfig as EvaluateConfig
from tokenloom.configs.evaluation import Metric as Metric
from tokenloom.configs.evaluation import Resize as Resize
from tokenloom.configs.methods import BaseConfig as BaseConfig
from tokenloom.configs.methods import DensityConfig as DensityConfig
from tokenloom.configs.methods import GeneratorConfig as GeneratorConfig
from tokenloom.configs.methods import MethodConfig as MethodConfig
from tokenloom.configs.methods import StageConfig as StageConfig
from tokenloom.configs.methods import TokenizerConfig as TokenizerConfig
from tokenloom.configs.section import NAME as NAME
from tokenloom.configs.section import Section as Section
from tokenloom.configs.series import SeriesConfig as SeriesConfig
from tokenloom.configs.sources import HubConfig as HubConfig
from tokenloom.configs.sources import PartConfig as PartConfig
from tokenloom.models.core.config import Added, Execution, Identity
from tokenloom.models.core.settings import ExecutionSettings


class DataConfig(Section):
    """Where the items come from and how they are made to fit."""

    kind: Added[str] = Field("image", description="kind of signal: image or series")
    source: Identity[str] = Field(
        description="images: digits, fashion_mnist, emoji (or emoji:variants), idx:FOLDER, folder:PATH, parquet:GLOB, webdataset:GLOB, "
        "manifest:FILE (PATH, GLOB and FILE here, or s3://…, gs://…, https://…), hf:REPO, hf://OWNER/NAME@REVISION, blend; "
        "series: sunspots, co2, csv:GLOB, parquet:GLOB"
    )
    size: Identity[int | tuple[int, int]] = Field(
        0,
        description="images: rows and columns in pixels, 4 to 4096, a number of a square one or [rows, columns]; "
        "series: [values, channels] of a window, a check that may be left out",
    )
    series: Added[SeriesConfig | None] = Field(None, description="windows of a series; for kind: series")
    channels: Identity[Literal[1, 3]] = Field(1, description="1 grey, 3 RGB")
    fit: Identity[Literal["pad", "crop", "resize"]] = Field(
        "resize", description="pad (never resized), crop (centre) or antialiased resize"
    )
    validation: Identity[float] = Field(0.1, gt=0, lt=0.9, description="share of the items in the validation split, by a keyed hash")
    test: Identity[float] = Field(0.0, ge=0, lt=0.9, description="share of the items in the test split")
    seed: Identity[int] = Field(0, description="key of the split")
    classes: Execution[int | None] = Field(
        None, ge=1, description="number of classes that the source has; with it a run can be planned before its data is there"
    )
    limit: Identity[int | None] = Field(None, ge=1, description="at most this many items, in the source's order")
    shard_rows: Identity[int] = Field(1024, ge=1, description="rows of one image shard")
    columns: Added[dict[str, str] | None] = Field(
        None,
        description="further images of an item by name, as conditions: {control: .control.png} is x.control.png beside x.png "
        "(folder:PATH, webdataset:GLOB), {control: edges} the column edges (parquet:GLOB)",
    )
    image_column: Added[str | None] = Field(None, description="column of the images (parquet:GLOB, hf:REPO); usual names if not given")
    label_column: Added[str | None] = Field(
        None,
        description="column, key of .json or end of a member (.cls) that holds the class; none: one class; usual names if not given",
    )
    caption_column: Added[str | None] = Field(
        None,
        description="column, key of .json or end of a member (.txt) that holds the caption; none: no captions; usual names if not given",
    )
    split_column: Added[str | None] = Field(
        None, description="column or key of .json that holds the split (train, val, test); none: not read; split if not given"
    )
    hub: Added[HubConfig | None] = Field(None, description="for hf://OWNER/NAME@REVISION")
    blend: Added[dict[str, PartConfig] | None] = Field(
        None, description="several sources as one, by names of your own: {photos: {source: …, weight: 3}, drawings: {source: …}}"
    )
    splits: Added[Literal["folders", "keyed"] | None] = Field(
        None,
        description="folders: train, val and test at the top are splits; keyed: every folder is a class; found by their names if not given",
    )
    bits: Added[int | None] = Field(
        None, ge=8, le=16, description="significant bits of images of 16 bits, e.g. 12; what the file says, or 16, if not given"
    )
    encode: Added[Literal["png", "jpeg", "webp"]] = Field(
        "png", description="form of images that have to be changed; others keep the bytes of their JPEG, PNG or WebP file"
    )
    quality: Added[int] = Field(95, ge=1, le=100, description="of encode: jpeg and webp")
    store_scale: Added[float] = Field(
        1.0, ge=1, le=16, description="with fit: crop, images are stored at up to this many times the size, for crops in training"
    )
    captions: Added[str] = Field(
        "source",
        description="text of each image: source (what it comes with), names (of the class, 'a handwritten seven'), none, "
        "or words around {name}, 'a photo of a {name}'",
    )
    max_pixels: Identity[int] = Field(100_000_000, ge=1, description="larger images are quarantined unread")
    on_bad: Execution[Literal["quarantine", "stop"]] = Field("quarantine", description="what a bad image does")

    @property
    def shape(self) -> tuple[int, int]:
        """``size`` as two numbers: rows and columns of an image, values and channels of a series."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @field_validator("size", mode="before")
    @classmethod
    def _one_form(cls, size: Any, info: ValidationInfo) -> Any:
        """An image of ``[32, 32]`` is one of 32, so that one dataset has one fingerprint."""
        sides = list(size) if isinstance(size, (list, tuple)) else [size]
        if len(sides) > 2 or not sides or not all(type(side) is int for side in sides):
            raise ValueError("give a whole number, or two: [rows, columns] of an image, [values, channels] of a series")
        square = len(sides) == 2 and sides[0] == sides[1] and info.data.get("kind") == "image"
        return sides[0] if square or len(sides) == 1 else size

    @model_validator(mode="after")
    def _of_its_kind(self) -> DataConfig:
        if self.kind == "image" and not all(4 <= side <= 4096 for side in self.shape):
            given = list(self.shape) if isinstance(self.size, tuple) else self.size
            raise ValueError(f"size={given}: give rows and columns of the image, 4 to 4096 pixels: a number, or [rows, columns]")
        if self.kind == "series" and self.size != 0 and not isinstance(self.size, tuple):
            raise ValueError(f"size={self.size}: a window of a series has the size [values, channels]; give both, or leave size out")
        if (self.kind == "series") != (self.series is not None):
            raise ValueError("series: {history, horizon, …} goes with kind: series")
        return self

    @model_validator(mode="after")
    def _stored(self) -> DataConfig:
        if self.store_scale > 1 and (self.fit != "crop" or self.columns):
            raise ValueError(f"store_scale={self.store_scale}: goes with fit: crop, and without data.columns, which are not cropped")
        return self

    @model_validator(mode="after")
    def _parts(self) -> DataConfig:
        if (self.source == "blend") != (self.blend is not None):
            raise ValueError("blend: {NAME: {source: …, weight: …}, …} goes with source: blend")
        if self.blend is not None:
            if len(self.blend) < 2 or not all(re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", name) for name in self.blend):
                raise ValueError(f"blend: {list(self.blend)}: at least two parts, with names of letters, digits, _, . and -")
            whole = sum(part.weight for part in self.blend.values())
            for name, part in self.blend.items():
                if part.source == "blend" or self.kind != "image" or part.weight < whole / 1000:
                    raise ValueError(f"blend.{name}: a source of images with at least a thousandth of the weight, and no blend itself")
        if self.hub is not None and not self.source.startswith("hf://"):
            raise ValueError("hub: {config: …, split: …} goes with source: hf://OWNER/NAME@REVISION")
        return self

    @model_validator(mode="after")
    def _splits(self) -> DataConfig:
        if self.validation + self.test >= 0.95:
            raise ValueError(f"validation={self.validation} + test={self.test} leave no training data")
        if self.captions not in ("source", "names", "none") and re.findall(r"\{[^{}]*\}|[{}]", self.captions) != ["{name}"]:
            raise ValueError(f"captions={self.captions!r}: write source, names, none, or a text with {{name}} in it, once")
        return self


View = Literal["plain", "flip", "ten_crop"]
#: How a training image is tokenized unless the run says otherwise.
VIEWS: tuple[View, ...] = ("plain",)


class ExtractConfig(Section):
    """Which forms of each training image are tokenized."""

    views: Identity[list[View]] = Field(
        default_factory=lambda: list(VIEWS),
        min_length=1,
        description="plain, flip (mirrored), ten_crop (corners and centre of the image enlarged by a tenth, each also mirrored)",
    )


class SampleConfig(Section):
    """How the generator is sampled; what is not given comes from the recipe's own sampler."""

    guidance: Identity[float | None] = Field(
        None, ge=0, description="classifier-free guidance weight w: logits = (1+w) cond - w null; 0 is off"
    )
    guidance_schedule: Identity[Literal["constant", "linear", "cosine", "power_cosine", "interval"] | None] = Field(
        None, description="w over the steps of a sample"
    )
    guidance_interval: Added[tuple[float, float] | None] = Field(
        None, description="shares of the decoding between which there is guidance, e.g. [0.1, 0.7]"
    )
    temperature: Identity[float | None] = Field(None, gt=0)
    temperature_end: Added[float | None] = Field(None, ge=0, description="where temperature ends, in a line from temperature")
    top_k: Identity[int | None] = Field(None, ge=0, description="keep the k likeliest codes; 0 keeps all")
    top_p: Identity[float | None] = Field(None, gt=0, le=1)
    steps: Identity[Annotated[int, Field(ge=1)] | list[Annotated[int, Field(ge=1)]] | None] = Field(
        None, description="decoding steps, where the order leaves them open (MaskGIT, ARPG, …), or the number of positions of each"
    )
    steps_along: Added[Literal["cosine", "linear", "arccos"] | None] = Field(
        None, description="curve of what is still open over the steps, in place of the order's own"
    )
    head: Added[dict[str, dict[str, Any]] | None] = Field(None, description="settings of the head's own sampler: {NAME: {field: value}}")
    decoder: Added[str | dict[str, dict[str, Any]] | None] = Field(
        None, description="way of decoding: jacobi, rejection …, or with fields: {jacobi: {window: 8}}, {draft_model: {model: RUN}}"
    )
    order: Added[Literal["raster", "random", "halton", "outward"] | list[int] | None] = Field(
        None, description="sequence of the positions, of models that may start anywhere; a list gives its first positions itself"
    )


class RegisterConfig(Section):
    """Registration in MLflow and the gate of the alias ``champion``."""

    name: Identity[str | None] = Field(None, pattern=NAME, description="registered model's name; the run's name if not given")
    floor: Identity[dict[str, float]] = Field(default_factory=dict, description="metric: least value for the first champion")
    gate: Identity[str] = Field("fd", description="metric on which a challenger must not be worse than the champion")


class RunConfig(Section):
    """One run: raw data in, an evaluated, registered model out.

    A run has a ``tokenizer`` and perhaps a ``generator`` on its tokens (without one it ends with an evaluated tokenizer), or a
    ``density`` on the data itself.
    """

    name: Identity[str] = Field(pattern=NAME, description="run name and registered model's name")
    data: Identity[DataConfig]
    tokenizer: Identity[TokenizerConfig | None] = Field(
        None, description="left out where a density models the data itself, or where a generator in use brings its own"
    )
    extract: Identity[ExtractConfig] = Field(default_factory=ExtractConfig)
    generator: Identity[GeneratorConfig | None] = Field(None, description="left out: the run ends with the evaluation of its tokenizer")
    density: Added[DensityConfig | None] = Field(None, description="a likelihood of the data itself, without tokens")
    stages: Added[tuple[StageConfig, ...]] = Field((), description="further training of the generator, each on the one before")
    sample: Identity[SampleConfig] = Field(default_factory=SampleConfig)
    evaluate: Identity[EvaluateConfig] = Field(default_factory=EvaluateConfig)
    register_: Identity[RegisterConfig] = Field(default_factory=RegisterConfig, alias="register")

    model_config = ConfigDict(populate_by_name=True)

    @property
    def codec(self) -> TokenizerConfig:
        """The tokenizer's section, of a run that has one."""
        assert self.tokenizer is not None, "a run of a density has no tokenizer"
        return self.tokenizer

    @model_validator(mode="after")
    def _whole(self) -> RunConfig:
        if self.density is not None:
            sections = {"tokenizer": self.tokenizer, "generator": self.generator, "stages": self.stages or None}
            wrong = [name for name, section in sections.items() if section is not None]
            wrong += [name for name, section in (("sample", self.sample), ("extract", self.extract)) if section != type(section)()]
            if wrong:
                raise ValueError(f"{wrong[0]} is given, but a density models the data itself: leave {wrong[0]} out, or leave density out")
            return self
        if self.generator is not None and self.generator.use is not None:
            if self.tokenizer is not None and self.tokenizer.use is None:
                raise ValueError(f"tokenizer is trained, but generator.use={self.generator.use!r} brings its own: leave tokenizer out")
        elif self.tokenizer is None:
            raise ValueError("tokenizer: is missing; add it, or density: {recipe: …} for a model of the data itself")
        if self.generator is None:
            # Compared with the defaults, not by what was written: a run also travels as a whole document with every field.
            unused = ("sample", self.sample, SampleConfig()), ("register", self.register_, RegisterConfig()), ("stages", self.stages, ())
            for name, given, default in unused:
                if given != default:
                    raise ValueError(f"{name} is given, but there is no generator: leave {name} out, or add generator: {{recipe: …}}")
        elif self.generator.warm_start is not None and not self.codec.pinned and self.codec.use is None:
            raise ValueError(
                f"generator.warm_start={self.generator.warm_start!r}: a generator knows the codes of one tokenizer, and new data would "
                "train another; add tokenizer.pinned: true, or use: ARTIFACT"
            )
        names = [stage.name.lower() for stage in self.stages]  # folders whose names differ by case are one on some disks
        if twice := sorted({stage.name for stage in self.stages if names.count(stage.name.lower()) > 1}):
            raise ValueError(f"stages: two of them are named {' and '.join(map(repr, twice))}; names tell them apart, whatever their case")
        return self


class ClusterConfig(Section):
    """Where a run is executed (configs/clusters/*.yaml); never part of a fingerprint."""

    address: Execution[str] = Field("local", description="local, or the address of a Ray cluster that this machine is in (auto, host:port)")
    execution: Execution[ExecutionSettings] = Field(default_factory=ExecutionSettings)
    extract_actors: Execution[int] = Field(2, ge=1)
    ingest_actors: Execution[int | None] = Field(
        None, ge=0, description="actors that read images; 0: threads of this process; extract_actors of many images if not given"
    )
    gpus_per_worker: Execution[float] = Field(0, ge=0)
    ship_code: Execution[bool] = Field(False, description="ship this checkout to the cluster's nodes")
    tracking_uri: Execution[str | None] = Field(None, description="MLflow server; SQLite under the root folder if not given")


def identity(section: Any) -> Any:
    """The identity part of a section as plain JSON data: what its fingerprint covers.

    Raises:
        ConfigError: a field without a mark, or a value without a stable serialization.
    """
    from tokenloom.models.core.config import canonical, enters
    from tokenloom.models.core.identity import identity_of

    if isinstance(section, BaseModel):
        result = {}
        for name, info in type(section).model_fields.items():
            hint = type("Hint", (), {"__metadata__": tuple(info.metadata)})
            value = getattr(section, name)
            if enters(hint, f"{type(section).__name__}.{name}", value, info.default):
                result[name] = identity(value)
        return result
    if hasattr(section, "__dataclass_fields__"):
        return identity_of(section)
    if isinstance(section, (list, tuple)):
        return [identity(item) for item in section]
    if isinstance(section, dict) and any(isinstance(value, BaseModel) for value in section.values()):
        return {key: identity(value) for key, value in section.items()}
    return canonical(section)
