"""Deterministic solvers of a Gaussian diffusion: from noise to data in few steps (DDIM, arXiv:2010.02502; DPM-Solver++,
arXiv:2211.01095).

Shapes: … rows and positions, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.diffusion import TIMES, GaussianDiffusion

Solver = Literal["ddim", "dpm"]
#: What a net says of x (…, C) at a time of the chain.
Output = Callable[[Tensor, int], Tensor]


def times_of(solver: Solver, steps: int) -> list[int]:
    """The times of the chain at which the net is asked, noisiest first: every ``TIMES // steps``-th from zero on (DDIM), or spread
    evenly from the last to above zero (DPM-Solver++).

    Raises:
        ConfigError: more steps than times, or none.
    """
    if not 1 <= steps <= TIMES - (solver == "dpm"):
        raise ConfigError(f"sample.head.steps={steps}: from 1 to {TIMES - (solver == 'dpm')}, the times of the chain")
    if solver == "ddim":
        return [i * (TIMES // steps) for i in reversed(range(steps))]
    # Halves go to the even number, as numpy rounds.
    return [round(i * (TIMES - 1) / steps) for i in range(steps, 0, -1)]


def solve(process: GaussianDiffusion, solver: Solver, steps: int, x: Tensor, output: Output, clip: float = 0.0) -> Tensor:
    """Data from noise x; what is predicted of the data is kept within ``clip`` (0: it is not)."""
    times = times_of(solver, steps)
    before: tuple[Tensor, float] | None = None  # prediction and log signal-to-noise ratio of the step before
    for index, t in enumerate(times):
        predicted = output(x, t)
        data = process.clean(predicted, x, t)
        if clip:
            data = data.clamp(-clip, clip)
        if solver == "ddim":
            later = float(process.signal(max(t - TIMES // steps, -1)))  # eq. 12 without noise
            x = math.sqrt(later) * data + math.sqrt(1 - later) * process.noise(predicted, x, t)
            continue
        s = times[index + 1] if index + 1 < steps else -1
        now, then = float(process.signal(t)), float(process.signal(s))
        here = 0.5 * math.log(now / (1 - now))
        if s < 0:  # to the data itself: first order (there is no noise left)
            x, before = data, None
            continue
        step = 0.5 * math.log(then / (1 - then)) - here
        slope = data
        if before is not None:  # eq. 16: a line through this prediction and the last one
            ratio = (here - before[1]) / step
            slope = data + (data - before[0]) / (2 * ratio)
        x = math.sqrt((1 - then) / (1 - now)) * x - math.sqrt(then) * math.expm1(-step) * slope
        before = data, here
    return x
