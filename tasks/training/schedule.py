"""What an optimizer's settings come to at a step: learning rate, weight decay, decay of the EMA.  Functions of the step alone."""

from __future__ import annotations

import math

from tokenloom.models.core.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``steps``."""
    warmup, drops = round(settings.warmup * steps), settings.drops
    starts = [0, *(round(share * steps) for share in settings.restarts), steps]
    begin = max(start for start in starts if start <= step) if step < steps else starts[-2]
    end = min(start for start in starts if start > begin)
    if step - begin < warmup:
        return settings.lr * (settings.warmup_from + (1 - settings.warmup_from) * (step - begin + 1) / warmup)
    done = (step - begin - warmup) / max(1, end - begin - warmup)
    done = max(0.0, done - settings.hold) / (1 - settings.hold)
    if settings.schedule == "linear":
        return settings.lr * (1 - (1 - settings.final) * done)
    if settings.schedule == "cosine":  # Loshchilov and Hutter, arXiv 1608.03983, eq. 5
        return settings.lr * (settings.final + (1 - settings.final) * (1 + math.cos(math.pi * done)) / 2)
    if settings.schedule == "inverse_sqrt":  # Vaswani et al., arXiv 1706.03762, section 5.3
        return settings.lr * math.sqrt(warmup / (step - begin + 1))
    return settings.lr * next((factor for share, factor in reversed(drops) if step >= round(share * steps)), 1.0)


def weight_decay(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Weight decay of a step: constant, or from its first to its last value by a cosine."""
    first, last = settings.weight_decay, settings.weight_decay_end
    return first if last is None else last + (first - last) * (1 + math.cos(math.pi * step / max(1, steps))) / 2


def ema_decay(decay: float, step: int) -> float:
    """Decay of the EMA after step ``step`` (from 0): short memory at first, so that the random start is forgotten."""
    return min(decay, (1 + step) / (10 + step))
