"""Blocks that many methods share, as configs of a net: only what a method changes is in its recipe."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from tokenloom.models.core import config
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.mlp import GELU, SwiGLU
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import AdaLN, PreNorm
from tokenloom.models.parts.rope import Rope
from tokenloom.models.parts.similarity import CosineSimilarity

C = TypeVar("C", bound=Transformer.Config)
N = TypeVar("N", bound=config.Config)


def llama(
    depth: int,
    width: int | None,
    heads: int | None,
    dropout: float,
    net: type[C] = Transformer.Config,  # type: ignore[assignment]
    multiple_of: int = 32,
    **own: Any,
) -> C:
    """LlamaGen's blocks (arXiv:2406.06525): RMS pre-norm, SwiGLU, no biases, two-dimensional rotary positions.

    Width is 64 times the depth and heads the depth if not given; the MLP's hidden width is a multiple of ``multiple_of`` (256 of the
    published models); ``own`` are fields of ``net`` that others do not have.
    """
    parts: dict[str, Any] = {
        "norm": PreNorm.Config(kind="rms", eps=1e-5),
        "mlp": SwiGLU.Config(multiple_of=multiple_of),
        "attention": Attention.Config(bias="none"),
        "rope": Rope.Config(),
    }
    return net(width=width or 64 * depth, depth=depth, heads=heads or depth, dropout=dropout, **parts | own)


def gpt(depth: int, width: int | None, heads: int | None, dropout: float) -> Transformer.Config:
    """GPT-2's blocks: pre-norm, GELU, biases, smaller initial weights where branches join (section 2.3 of its paper).

    Width is 64 times the depth and heads the depth if not given.
    """
    return Transformer.Config(
        width=width or 64 * depth,
        depth=depth,
        heads=heads or depth,
        norm=PreNorm.Config(kind="layer"),
        mlp=GELU.Config(),
        attention=Attention.Config(bias="qkv"),
        dropout=dropout,
        init=Init(scale_residual=True),
    )


def vit(depth: int, width: int, heads: int, ratio: float = 4.0, dropout: float = 0.0) -> Transformer.Config:
    """Blocks of a vision transformer (arXiv:2010.11929), as masked autoencoders have them (MAR, arXiv:2406.11838)."""
    return Transformer.Config(
        width=width,
        depth=depth,
        heads=heads,
        norm=PreNorm.Config(kind="layer", eps=1e-6),
        mlp=GELU.Config(ratio=ratio, form="none"),
        attention=Attention.Config(bias="qkv"),
        dropout=dropout,
    )


def var(depth: int, width: int | None, heads: int | None, drop_path: float | None, net: type[N], **own: Any) -> N:
    """VAR's blocks (arXiv:2404.02905): adaLN, GELU, attention by cosine similarity, stochastic depth that grows with the depth.

    Width is 64 times the depth, heads the depth and drop path depth/240 if not given; ``own`` are fields of ``net``.
    """
    parts: dict[str, Any] = {
        "norm": AdaLN.Config(),
        "mlp": GELU.Config(ratio=4.0, form="tanh"),
        "attention": Attention.Config(similarity=CosineSimilarity(), bias="qv"),
        "drop_path": 0.1 * depth / 24 if drop_path is None else drop_path,
    }
    sizes = {"width": width or 64 * depth, "depth": depth, "heads": heads or depth}
    return cast(N, net(**sizes, **parts | own))
