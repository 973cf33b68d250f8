"""The zoo's index: recipe names to functions that return full configs.

Recipe files under ``models/zoo`` are discovered, so a new method edits nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, get_type_hints

from tokenloom.models.core.config import Config, ConfigError, coerce, override

_RECIPES: dict[str, Recipe] = {}
RecipeFunction = TypeVar("RecipeFunction", bound=Callable[..., Config])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One method: its name, what it is, and the function that returns its config.

    ``tiny`` are arguments that make it small enough for the contract tests (seconds on one core);
    ``paper`` is the arXiv id or title; the docstring of the recipe's file says the rest.
    """

    name: str
    kind: str
    paper: str
    function: Callable[..., Config]
    tiny: Mapping[str, Any]
    axes: Mapping[str, str]

    @property
    def doc(self) -> str:
        """Docstring of the recipe's file: paper, what is new, what differs, command, expected number."""
        return inspect.getdoc(inspect.getmodule(self.function)) or ""

    def config(self, args: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None) -> Config:
        """The full config for these arguments and ``set`` edits.

        Raises:
            ConfigError: unknown argument, wrong type or impossible value, naming it.
        """
        parameters = inspect.signature(self.function).parameters
        hints = get_type_hints(self.function)
        # A parameter that is a dataclass stands for its fields: recipes share their common arguments so.
        groups = {name: hints[name] for name in parameters if dataclasses.is_dataclass(hints[name])}
        inside = {field.name: name for name, group in groups.items() for field in dataclasses.fields(group)}
        checked: dict[str, Any] = {}
        grouped: dict[str, dict[str, Any]] = {name: {} for name in groups}
        for key, value in (args or {}).items():
            if key in inside:
                grouped[inside[key]][key] = coerce(value, get_type_hints(groups[inside[key]])[key], f"args.{key}")
            elif key in parameters and key not in groups:
                checked[key] = coerce(value, hints[key], f"args.{key}")
            else:
                known = [name for name in parameters if name not in groups] + list(inside)
                raise ConfigError(f"args.{key}: recipe {self.name!r} has no such argument; it has: {', '.join(known)}")
        for name, fields in grouped.items():
            checked[name] = dataclasses.replace(parameters[name].default, **fields)
        try:
            return override(self.function(**checked), changes or {})
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            raise ConfigError(f"recipe {self.name!r}: {error}") from error


def register(name: str, *, kind: str, paper: str, tiny: Mapping[str, Any], **axes: str) -> Callable[[RecipeFunction], RecipeFunction]:
    """Decorator that puts a recipe function into the zoo; a duplicate name raises.

    ``kind`` is ``tokenizer`` or ``generator`` (later ``decoder``, ``posttrain``, ``control``);
    ``axes`` are the table's columns, e.g. ``order="raster", feed="shifted", net=…, head=…``.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"recipe name {name!r}: use lower case letters, digits and _")

    def decorate(function: RecipeFunction) -> RecipeFunction:
        if name in _RECIPES and _RECIPES[name].function.__module__ != function.__module__:
            raise ConfigError(f"recipe {name!r} is registered twice")
        _RECIPES[name] = Recipe(name, kind, paper, function, dict(tiny), dict(axes))
        return function

    return decorate


@cache
def _discover() -> None:
    import tokenloom.models.zoo

    for module in pkgutil.walk_packages(tokenloom.models.zoo.__path__, "tokenloom.models.zoo."):
        importlib.import_module(module.name)


def names(kind: str | None = None) -> list[str]:
    """All recipe names, sorted; of one kind if given."""
    _discover()
    return sorted(n for n, r in _RECIPES.items() if kind in (None, r.kind))


def get(name: str, kind: str | None = None) -> Recipe:
    """The recipe of this name.

    Raises:
        ConfigError: unknown name or wrong kind, with the names that exist.
    """
    _discover()
    if name not in _RECIPES or kind not in (None, _RECIPES[name].kind):
        what = f"{kind} recipe" if kind else "recipe"
        raise ConfigError(f"unknown {what} {name!r}; there are: {', '.join(names(kind))}")
    return _RECIPES[name]


def table() -> list[dict[str, Any]]:
    """One row a method: name, kind, paper and the axes, for ``tokenloom methods`` and the README."""
    columns = ("order", "feed", "net", "head")
    rows = []
    for name in names():
        recipe = get(name)
        axes = {c: recipe.axes.get(c, "-") for c in columns} | dict(recipe.axes)
        rows.append({"name": name, "kind": recipe.kind, "paper": recipe.paper, **axes, "status": "ready"})
    return rows
