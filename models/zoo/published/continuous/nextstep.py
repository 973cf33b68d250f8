"""Published size of NextStep-1 (arXiv:2508.10711; stepfun-ai/NextStep-1)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import TrainSettings
from tokenloom.models.zoo.published import codecs

NEXTSTEP = (
    Size(
        name="14B",
        args={
            **{"depth": 48, "width": 5120, "heads": 40, "kv_heads": 8, "inner": 13824, "base": 1e6, "patch": 2, "repeats": 4},
            **{"head_depth": 12, "head_width": 1536, "length": 512, "draw_steps": 50, "guidance": 6.5},
        },
        parameters=None,
        mark="unknown",
        layout=TokenLayout(grids=((64, 64),), channels=16),
        tokens=1024,
        image=512,
        codec=codecs.KL_F8_Z16,
        excludes="the language model is Qwen2.5-14B, whose table of words is not here; the head alone has 157,228,096",
        headline="GenEval 0.63",
        training=Training(
            settings=TrainSettings(steps=1, batch=1, precision="bfloat16"),
            unknown=("steps", "batch", "optimizer.lr"),
            departs=("steps, batch and rates of its stages are not among the sources here", "the language model is not pretrained"),
        ),
    ),
)
