"""Official checkpoints: one module a family, found by its ``FAMILY``.

A family's module defines

- ``FAMILY``: its name, or a tuple of names (one a fixture file),
- ``OPTIONS``: every key of its official config, as ``options.py`` declares them, read strictly by the functions below,
- ``build(info) -> nn.Module``: our model for the settings in ``info["config"]``,
- ``names(info) -> NameMap``: official names to ours and back,
- ``outputs(model, info, inputs) -> dict[str, Tensor]``: every number that the fixture records.

``tokenloom.models.pretrained.parity.load(family, info, tensors)`` puts the first two together.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType


@cache
def families() -> dict[str, ModuleType]:
    """Family name to module, by discovery."""
    found: dict[str, ModuleType] = {}
    for entry in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(entry.name)
        names = getattr(module, "FAMILY", ())
        for name in (names,) if isinstance(names, str) else names:
            if name in found:
                raise ValueError(f"family {name!r} is defined by {found[name].__name__} and {entry.name}")
            found[name] = module
    return found
