"""FAR: fast autoregression over continuous latents by a shortcut head (Hang et al. 2025, arXiv:2504.18391).

New: MAR's diffusion head is replaced by one that knows how long its steps are and is trained to agree with two steps of half the length,
so that few steps, or one, draw a token.
Differs: neither sizes nor training are published beyond the paper's text: by default the blocks are MAR-B's;
the head's own weights, not averaged ones, say what longer steps should do.
Run: tokenloom run smoke_far_shortcut
Expect: the paper reports MAR's quality at 2.3 times its speed.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.shortcut import Shortcut, ShortcutSampler
from tokenloom.models.zoo.generators.mar import mar


@register(
    "far_shortcut",
    kind="generator",
    paper="2504.18391",
    tiny={"depth": 1, "width": 32, "heads": 2, "head_depth": 1, "head_width": 32, "buffer": 2, "steps": 4, "draw_steps": 2},
    codec="kl",
)
def far_shortcut(
    depth: int = 12,
    width: int = 768,
    heads: int = 12,
    head_depth: int = 6,
    head_width: int = 1024,
    repeats: int = 4,
    finest: int = 128,
    buffer: int = 64,
    steps: int = 64,
    draw_steps: int = 8,
    temperature: float = 1.0,
    guidance: float = 1.9,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """MAR's ``depth`` blocks each in encoder and decoder; the head takes ``draw_steps``, a power of two, for each of ``steps``."""
    sizes = {"depth": depth, "width": width, "heads": heads, "buffer": buffer, "steps": steps, "guidance": guidance}
    made = mar(**sizes, classes=classes, dropout=dropout, label_dropout=label_dropout)  # type: ignore[arg-type]
    own = ShortcutSampler(steps=draw_steps, temperature=temperature)
    return replace(
        made,
        head=Shortcut.Config(width=head_width, depth=head_depth, repeats=repeats, finest=finest),
        sampler=replace(made.sampler, head=own),
    )
