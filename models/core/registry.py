"""The zoo's index: recipe names to functions that return full configs.

Recipe files under ``models/zoo`` are discovered, so a new method edits nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, get_type_hints

from tokenloom.models.core.config import AXES, Config, ConfigError, coerce, shortened
from tokenloom.models.core.edits import override
from tokenloom.models.core.limits import check_number
from tokenloom.models.core.published import Size, Training

#: What a method is: its verbs (``models.core.protocols``).
KINDS = ("tokenizer", "generator", "density")

_RECIPES: dict[str, Recipe] = {}
RecipeFunction = TypeVar("RecipeFunction", bound=Callable[..., Config])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One method: its name, what it is, and the function that returns its config.

    ``tiny`` are arguments that make it small enough for the contract tests (seconds on one core);
    ``paper`` is the arXiv id or title; the docstring of the recipe's file says the rest.  ``codec`` is the recipe of the tokenizer
    that the tests pair it with (of a tokenizer: of its base).  ``sizes`` are the published models; ``args: {size: NAME}`` stands for
    the arguments of one of them, ``size: tiny`` for ``tiny``, and arguments beside it win.
    """

    name: str
    kind: str
    paper: str
    function: Callable[..., Config]
    tiny: Mapping[str, Any]
    codec: str = ""
    sizes: tuple[Size, ...] = ()

    def size(self, name: str, where: str = "args.size") -> Size:
        """The published size of this name: the dial's, or that of the published tables.

        Raises:
            ConfigError: no such size, with those that there are.
        """
        for size in self.sizes:
            if name in (size.name, size.key):
                return size
        known = ", ".join(size.name for size in self.sizes) or "none is published; give the single arguments"
        raise ConfigError(f"{where}: recipe {self.name!r} has no size {name!r}; sizes: {known}, or tiny")

    def training(self, args: Mapping[str, Any], where: str = "args") -> Training:
        """The published training of the size that the arguments name, or the one that all sizes share.

        Raises:
            ConfigError: none is published, or it depends on the size and the arguments name none.
        """
        if "size" in args and args["size"] != "tiny":
            found = [self.size(args["size"], f"{where}.size").training]
        else:
            found = [size.training for size in self.sizes]
        if not any(found):
            raise ConfigError(f"train.as: paper: no training of recipe {self.name!r} is published; give its fields")
        if found[0] is None or any(each is None or each.settings != found[0].settings for each in found):
            raise ConfigError(f"train.as: paper: the published training of recipe {self.name!r} depends on its size: give {where}.size")
        return found[0]

    def expanded(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with those that ``size`` stands for."""
        if "size" not in args or "size" in inspect.signature(self.function).parameters:
            return dict(args)
        name = args["size"]
        base = self.tiny if name == "tiny" else self.size(coerce(name, str, "args.size")).args
        return {**base, **{key: value for key, value in args.items() if key != "size"}}

    @property
    def axes(self) -> dict[str, str]:
        """What its default config is made of, by axis, and ``codec`` where it has one."""
        return self.config().axis_labels | ({"codec": self.codec} if self.codec else {})

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
        for key, value in self.expanded(args or {}).items():
            if key in inside:
                grouped[inside[key]][key] = coerce(value, get_type_hints(groups[inside[key]])[key], f"args.{key}")
            elif key in parameters and key not in groups:
                checked[key] = coerce(value, hints[key], f"args.{key}")
            else:
                known = [name for name in parameters if name not in groups] + list(inside)
                raise ConfigError(f"args.{key}: recipe {self.name!r} has no such argument; it has: {', '.join(known)}")
            check_number(key, value, f"args.{key}")
        for name, fields in grouped.items():
            checked[name] = dataclasses.replace(parameters[name].default, **fields)
        try:
            full = self.function(**checked)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"recipe {self.name!r}{written(args, {})}: {plain(error)}") from error
        return override(full, changes or {})


def written(args: Mapping[str, Any] | None, changes: Mapping[str, Any] | None) -> str:
    """What a run file gives a recipe, for messages: `` (args.depth=3, set.net.heads=2)``, or nothing."""
    given = [f"args.{key}={shortened(value)}" for key, value in (args or {}).items()]
    given += [f"set.{key}={shortened(value)}" for key, value in (changes or {}).items()]
    return f" ({', '.join(given)})" if given else ""


def plain(error: Exception) -> str:
    """The message of an error; of one that no check made, with its type."""
    return str(error) if isinstance(error, ValueError) else f"these sizes do not go together ({type(error).__name__}: {error})"


def register(
    name: str, *, kind: str, paper: str, tiny: Mapping[str, Any], codec: str = "", sizes: Iterable[Size] = ()
) -> Callable[[RecipeFunction], RecipeFunction]:
    """Decorator that puts a recipe function into the zoo; a duplicate name raises.

    ``kind`` is one of ``KINDS``.
    """
    sizes = tuple(sizes)
    taken = [name for size in sizes for name in {size.name, size.key}] + ["tiny"]
    if len(set(taken)) < len(taken):
        raise ConfigError(f"recipe {name!r}: two sizes share a name: {', '.join(sorted(n for n in taken if taken.count(n) > 1))}")
    if kind not in KINDS:
        raise ConfigError(f"recipe {name!r}: kind {kind!r}: use one of {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"recipe name {name!r}: use lower case letters, digits and _")

    def decorate(function: RecipeFunction) -> RecipeFunction:
        if name in _RECIPES and _RECIPES[name].function.__module__ != function.__module__:
            raise ConfigError(f"recipe {name!r} is registered twice")
        _RECIPES[name] = Recipe(name, kind, paper, function, dict(tiny), codec, sizes)
        return function

    return decorate


@cache
def _modules() -> tuple[str, ...]:
    """Names of the modules of the zoo's rooms, without importing them: a recipe stands in the one of its name."""
    import tokenloom.models.zoo

    rooms = [room.name for room in pkgutil.iter_modules(tokenloom.models.zoo.__path__) if room.ispkg]
    paths = {f"tokenloom.models.zoo.{room}": [f"{path}/{room}" for path in tokenloom.models.zoo.__path__] for room in rooms}
    return tuple(f"{room}.{module.name}" for room, path in paths.items() for module in pkgutil.iter_modules(path))


def _load(path: str) -> None:
    """Import a module, and all modules in it if it is a package."""
    import torch

    # Whoever asks first may be building without memory (``torch.device("meta")``); what modules make when imported lasts.
    with torch.device("cpu"):
        inside = getattr(importlib.import_module(path), "__path__", ())
        for module in pkgutil.walk_packages(inside, f"{path}."):
            importlib.import_module(module.name)


@cache
def _discover() -> None:
    """Import the whole zoo."""
    _load("tokenloom.models.zoo")


def _find(name: str) -> None:
    """Import what registers this name: the module of its name, or the whole zoo where that has not got it."""
    for path in [path for path in _modules() if path.rpartition(".")[2] == name]:
        _load(path)
    if name not in _RECIPES:
        _discover()


def names(kind: str | None = None) -> list[str]:
    """All recipe names, sorted; of one kind if given."""
    _discover()
    return sorted(n for n, r in _RECIPES.items() if kind in (None, r.kind))


def get(name: str, kind: str | None = None) -> Recipe:
    """The recipe of this name.

    Raises:
        ConfigError: unknown name or wrong kind, with the names that exist.
    """
    if name not in _RECIPES:
        _find(name)
    if name not in _RECIPES or kind not in (None, _RECIPES[name].kind):
        what = f"{kind} recipe" if kind else "recipe"
        raise ConfigError(f"unknown {what} {name!r}; there are: {', '.join(names(kind))}")
    return _RECIPES[name]


def table() -> list[dict[str, Any]]:
    """One row a method: name, kind, paper and its part on each axis, for ``tokenloom methods``, ``python -m`` and the docs."""
    rows = []
    for name in names():
        recipe = get(name)
        axes = dict.fromkeys(AXES, "-") | recipe.axes
        sizes = [size.to_dict() for size in recipe.sizes]
        rows.append({"name": name, "kind": recipe.kind, "paper": recipe.paper, **axes, "status": "ready", "sizes": sizes})
    return rows


def described(name: str) -> tuple[str, list[str], list[list[str]]]:
    """One method for people: what its file says, and its published sizes as columns and rows.

    Raises:
        ConfigError: no method has this name.
    """
    recipe = get(name)
    rows = []
    for size in recipe.sizes:
        compute = "-" if size.flops is None else f"{size.flops:.2g}"
        counts = ["-" if n is None else f"{n:,}" for n in (size.parameters, size.tokens)]
        rows.append([size.name, size.key, *counts, compute, ", ".join(size.checkpoints) or "-", size.headline or "-"])
    return recipe.doc, ["size", "published as", "parameters", "tokens", "training FLOPs", "checkpoints", "headline"], rows


def tables() -> dict[str, tuple[list[str], list[list[str]]]]:
    """The table for people, one for each kind: its columns, those axes that methods of this kind have, and its rows."""
    found = {}
    for kind in KINDS:
        rows = [row for row in table() if row["kind"] == kind]
        columns = ["name", *(axis for axis in AXES if any(row[axis] != "-" for row in rows)), "paper"]
        found[kind] = (columns, [[str(row[column]) for column in columns] for row in rows])
    return {kind: table for kind, table in found.items() if table[1]}
