"""What a module makes when it is imported does not hang on who imports it first."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from tokenloom.models.core import registry


def tensors(module: ModuleType) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}


def fresh(name: str) -> ModuleType:
    """A second copy of a module, not put among the imported ones."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_have_values_where_models_are_built_without_memory() -> None:
    registry.names()
    holders = [name for name, module in sorted(sys.modules.items()) if name.startswith("tokenloom.models") and tensors(module)]
    assert "tokenloom.models.zoo.tokenizers.jpeg.codec" in holders
    for name in holders:
        with torch.device("meta"):
            made = tensors(fresh(name))
        for key, value in made.items():
            assert torch.equal(value, tensors(sys.modules[name])[key]), f"{name}.{key}"


def test_methods_are_found_with_memory() -> None:
    find = registry._discover.__wrapped__
    seen: list[torch.device] = []

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(registry.importlib, "import_module", lambda name: seen.append(torch.empty(1).device))  # type: ignore[attr-defined]
        find()
    assert set(seen) == {torch.device("cpu")}
