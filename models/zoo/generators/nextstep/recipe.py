"""NextStep-1: autoregression over text and continuous image tokens (NextStep Team 2025, arXiv:2508.10711).

New: a language model reads the prompt and goes on with continuous image tokens in the same causal stream; words are predicted by the usual
softmax, tokens drawn by a small flow-matching head, and no diffusion model stands beside them.
Differs: texts are bytes instead of Qwen2.5's word pieces, and nothing is pretrained; the map between states and head, which the released
training code passes by and its decoding applies, is trained here, and so are states with the table of places; no images in prompts;
tokens of a plain KL tokenizer, where the paper fine-tunes one whose latents are normalised by channel and trained under noise.
Run: tokenloom run smoke_nextstep
Expect: GenEval 0.63, and 0.73 with self-chain-of-thought, by 14 B parameters and a head of 157 M trained in stages (paper).
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.flows.matching import FlowSampler
from tokenloom.models.parts.heads.flow import FlowMatching
from tokenloom.models.parts.mlp import SwiGLU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.nextstep.module import NextStep
from tokenloom.models.zoo.generators.nextstep.words import Words
from tokenloom.models.zoo.published.continuous.nextstep import NEXTSTEP


@register(
    "nextstep",
    kind="generator",
    paper="2508.10711",
    tiny={"depth": 1, "width": 32, "heads": 2, "inner": 64, "head_depth": 1, "head_width": 32, "draw_steps": 4},
    codec="kl",
    sizes=NEXTSTEP,
)
def nextstep(
    depth: int = 12,
    width: int = 768,
    heads: int = 12,
    kv_heads: int = 0,
    inner: int = 2048,
    bias: Literal["none", "in"] = "in",
    base: float = 10000.0,
    eps: float = 1e-6,
    patch: int = 1,
    head_depth: int = 12,
    head_width: int = 1536,
    repeats: int = 4,
    length: int = 0,
    draw_steps: int = 50,
    guidance: float = 6.5,
    shift: float = 1.0,
    classes: int | None = None,
    dropout: float = 0.1,
) -> NextStep.Config:
    """A small language model with the released head by default: ``inner`` width of its MLPs, biases of queries, keys and values as Qwen2.5
    has them; with ``length``, texts of at most so many bytes (else a class) are what it is asked by, and predicted; ``dropout``: share of
    them left out in training."""
    condition: Conditioner.Config = ClassCondition.Config(classes=classes, dropout=dropout)
    if length:
        condition = Words.Config(length=length, dropout=dropout)
    return NextStep.Config(
        net=Transformer.Config(
            width=width,
            depth=depth,
            heads=heads,
            norm=PreNorm.Config(kind="rms", eps=eps),
            mlp=SwiGLU.Config(ratio=1.5 * inner / width, multiple_of=inner),
            attention=Attention.Config(bias=bias, kv_heads=kv_heads),
        ),
        head=FlowMatching.Config(width=head_width, depth=head_depth, repeats=repeats, unit=1.0),
        patch=patch,
        base=base,
        condition=condition,
        sampler=Sampler(guidance=Constant(value=guidance), head=FlowSampler(steps=draw_steps, solver="sde", shift=shift, final="velocity")),
    )
