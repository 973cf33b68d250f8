"""A published size as a model: its spec, and the number of its parameters as the authors count them."""

from __future__ import annotations

from typing import Any

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.published import Size
from tokenloom.models.core.registry import Recipe


def spec_of(recipe: Recipe, size: Size) -> ModelSpec:
    """The model of this size on what it was published for: its images, and its tokens and their tokenizer."""
    given: dict[str, Any] = {}
    if size.codec is not None:
        name, args = size.codec
        codec = registry.get(name)
        given["tokenizer"] = ModelSpec(codec.kind, name, dict(args), {}, {"signal": signal_of(size).to_dict()}).to_dict()
    if recipe.kind == "generator":
        assert size.layout is not None, f"{recipe.name} {size.name}: a generator's size names its tokens"
        given |= {"layout": size.layout.to_dict(), "classes": size.classes}
    else:
        given["signal"] = signal_of(size).to_dict()
    return ModelSpec(recipe.kind, recipe.name, {"size": size.name}, {}, given)


def signal_of(size: Size) -> signals.SignalSpec:
    """The images that a size was published for."""
    return signals.image(size.image, 3)


def counted(recipe: Recipe, size: Size) -> int:
    """Parameters of our model of this size, counted as the published number counts them (without memory for weights)."""
    model = spec_of(recipe, size).shaped()
    total = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not n.startswith(size.without or ("\n",)))
    held = [(n, t) for n, t in (*model.named_buffers(), *model.named_parameters()) if not t.requires_grad]
    return total + sum(t.numel() for n, t in held if size.fixed and n.startswith(size.fixed))
