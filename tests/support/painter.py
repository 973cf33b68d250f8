"""A tokenizer of any layout that draws a small picture of its tokens: stands for those of generators whose own is not at hand."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tokenloom.models import pretrained
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec, save_model
from tokenloom.models.core.config import Config as PlainConfig
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Tokenizer, TokenLayout, Tokens
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work

SIDE, CHANNELS = 8, 3


class Painter(Tokenizer):
    """Pictures (3, 8, 8) whose values are waves of the tokens' numbers; pictures have one code, zero."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PlainConfig, tag="test.painter"):
        """The layout, and the quantizer that a generator copies (None: it copies none)."""

        grids: tuple[tuple[int, int], ...]
        vocabulary: int = 0
        channels: int = 0
        codebooks: int = 1
        axis: str = "grid"
        vocabularies: tuple[int, ...] = ()
        quantizer: Quantizer.Config | None = None

        @property
        def needs(self) -> tuple[str, ...]:
            return ()

        def build(self, **_: Any) -> Painter:
            return Painter(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        given = {name: getattr(config, name) for name in ("grids", "vocabulary", "channels", "codebooks", "axis", "vocabularies")}
        self.config, self.own = config, TokenLayout(**given)
        self.quantizer = None if config.quantizer is None else config.quantizer.build(self.own.grids[-1])

    @property
    def layout(self) -> TokenLayout:
        return self.own

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        raise NotImplementedError

    def encode(self, signal: Tensor) -> Tokens:
        shape = (len(signal), self.own.length, *((self.own.codebooks,) if self.own.codebooks > 1 else ()))
        return Tokens(torch.zeros(shape if self.own.discrete else (*shape, self.own.channels)).to(self._kind), self.own)

    @property
    def _kind(self) -> torch.dtype:
        return torch.int64 if self.own.discrete else torch.float32

    def decode(self, tokens: Tokens) -> Tensor:
        number = tokens.data.float().flatten(1)
        wave = torch.arange(SIDE * SIDE * CHANNELS).float()[:, None] * (torch.arange(number.shape[1]) % 11 + 1)
        return torch.sin(wave + 0.1).matmul(number.T).sin().T.reshape(-1, CHANNELS, SIDE, SIDE)


def painter(store: Store, layout: TokenLayout, quantizer: Any = None, name: str = "painter") -> Artifact:
    """Such a tokenizer as an artifact."""
    fields = asdict(layout)
    config = Painter.Config(**{name: fields[name] for name in Painter.Config.__dataclass_fields__ if name in fields}, quantizer=quantizer)
    digest = hashlib.sha256(repr(config).encode()).hexdigest()
    given = {"signal": signals.image(SIDE, CHANNELS).to_dict()}
    spec = ModelSpec("tokenizer", "painter", {}, {}, given, config.to_dict())
    step = StepSpec("import", 1, "tokenizer", name, {"painter": digest})

    def body(work: Work) -> dict[str, Any]:
        torch.manual_seed(0)
        save_model(work.scratch, spec, config.build().state_dict())
        for file in ("weights.safetensors", "model.json"):
            work.put_file(work.scratch / file, file)
        work.notes.update(spec=spec.to_dict(), parameters=0, layout=layout.to_dict() | {"tokenizer": step.fingerprint})
        return {"parameters": 0}

    return store.execute(step, body).artifact


def for_family(store: Store, family: str, info: dict[str, Any]) -> Artifact | None:
    """The tokenizer of an official generator with these settings; None for a model that has none."""
    module = pretrained.families()[family]
    with torch.device("meta"):
        built = module.build(info)
    if not hasattr(built, "layout"):
        return None
    codec = getattr(module, "_Codec", None)
    return painter(store, built.layout, None if codec is None else codec(info).quantizer, f"{family}-painter".replace("_", "-"))
