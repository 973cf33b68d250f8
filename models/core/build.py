"""Model specs: what to build, as plain data, and the folder format of a saved model.

A model on disk is ``model.json`` (the spec) and ``weights.safetensors``; no pickled classes.  A saved spec carries the resolved
config and is built from that, so that a recipe's later defaults never alter a model that is there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenloom.models.core import registry
from tokenloom.models.core.config import Config, ConfigError, coerce, fields_from, from_dict
from tokenloom.models.core.protocols import Method, TokenLayout
from tokenloom.models.core.signals import SignalSpec, upgraded

#: Number of the form of ``model.json``, raised when what is written can no longer be read by an older version.
FORMAT = 2


class _Unfilled(TorchFunctionMode):
    """Leaves out the values of tensors of the meta device: they have no memory, and much of the time of a build went there.

    What is drawn or copied there is a tensor of that shape; torch's own way loads an algebra system first, for half a second.
    """

    FILLS = frozenset({
        Tensor.normal_, Tensor.uniform_, Tensor.div_, Tensor.mul_, Tensor.__itruediv__, Tensor.__imul__,
        nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_uniform_,
    })  # fmt: skip
    ALIKE = frozenset({Tensor.clone, torch.clone, torch.empty_like, torch.rand_like, torch.randn_like, nn.functional.normalize})
    DRAWN = frozenset({torch.randn, torch.rand})
    COUNTED = frozenset({torch.arange, torch.eye, torch.linspace})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if isinstance(first, Tensor) and first.is_meta:
            if func in self.FILLS:
                return first
            if func in self.ALIKE:
                return torch.empty(first.shape, dtype=kwargs.get("dtype") or first.dtype, device=kwargs.get("device") or first.device)
        elsewhere = kwargs.get("device") is not None and torch.device(kwargs["device"]).type != "meta"
        if func in self.DRAWN and not elsewhere:
            return torch.empty(*args, **{name: value for name, value in kwargs.items() if name != "generator"})
        if func in self.COUNTED and not elsewhere:
            counted = func(*args, **{**kwargs, "device": "cpu"})
            return torch.empty(counted.shape, dtype=counted.dtype, device="meta")
        return func(*args, **kwargs)


@dataclass(frozen=True)
class ModelSpec:
    """A recipe with its arguments and what the data gives: enough to build the model anywhere.

    ``given`` of a tokenizer: ``signal`` (``SignalSpec`` as plain data).  Of a generator: ``layout``, ``classes`` and ``tokenizer``
    (the spec of the tokenizer as plain data, for the parts that the generator carries frozen).  Of a tokenizer that depends on
    other models (its config's ``needs``) also ``tokenizer`` (the spec of its base) and ``features`` (the classifier's shape).
    ``resolved`` is the canonical form of the full config, once it is decided: then recipe, arguments and edits only say where
    it came from.
    """

    kind: str
    recipe: str
    args: dict[str, Any] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    resolved: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", upgraded(self.given))

    def config(self) -> Config:
        """The full config: the resolved one, or the recipe's of today.

        Raises:
            ConfigError: unknown recipe, argument or path, or an impossible value.
        """
        if self.resolved is not None:
            return from_dict(self.resolved, f"{self.kind} {self.recipe}")
        if self.recipe.startswith("official/"):  # an imported checkpoint: its family makes the config from the official settings
            from tokenloom.models import pretrained

            return cast(Config, pretrained.families()[self.recipe.removeprefix("official/")].config(self.args))
        return registry.get(self.recipe, self.kind).config(self.args, self.set)

    def build(self) -> Method:
        """The model with fresh weights (from torch's global generator: seed it before).

        Raises:
            ConfigError: a value that does not fit what the data gives.
        """
        given: dict[str, Any] = dict(self.given)
        if "layout" in given:
            given["layout"] = TokenLayout.from_dict(given["layout"])
        if given.get("tokenizer"):
            tokenizer = ModelSpec.from_dict(given["tokenizer"])
            # Of what the tokenizer was given itself, the image alone counts: its own base is inside of it.
            given = {k: tokenizer.given[k] for k in ("signal",) if k in tokenizer.given} | given
            given["tokenizer"] = tokenizer.config()
        if "signal" in given:
            given["signal"] = SignalSpec.from_dict(given["signal"])
        try:
            return cast(Method, cast(Any, self.config()).build(**given))
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            where = registry.written(self.args, self.set) if self.resolved is None else ""
            raise ConfigError(f"{self.kind} recipe {self.recipe!r}{where}: {registry.plain(error)}") from error

    def shaped(self) -> Method:
        """The model without memory for its weights, where its parts allow that (one that computes values when built needs real tensors)."""
        try:
            with torch.device("meta"), _Unfilled():
                return self.build()
        except (NotImplementedError, RuntimeError):
            return self.build()

    def resolve(self) -> ModelSpec:
        """This spec with its config decided."""
        return self if self.resolved is not None else replace(self, resolved=self.config().to_dict())

    def check_roles(self, roles: Collection[str]) -> None:
        """Refuse to train without the trained models that the config needs.

        Raises:
            ConfigError: naming the role that nothing has.
        """
        if missing := [role for role in self.config().needs if role not in roles]:
            raise ConfigError(
                f"{self.kind} {self.recipe!r} needs a trained model in the role {missing[0]!r} and was given "
                f"{', '.join(sorted(roles)) or 'none'}: add the step that makes it, or an objective that does without"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "format": FORMAT}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Inverse of ``to_dict``.

        Raises:
            ConfigError: a newer version wrote it, a missing field, or a value of the wrong type.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"model: {data!r} is not a mapping of fields")
        if (version := coerce(data.get("format", FORMAT), int, "model.format")) > FORMAT:
            raise ConfigError(f"model {data.get('recipe')}: format {version} is newer than {FORMAT}: update this version of Tokenloom")
        known = {field.name for field in fields(cls)}
        return cls(**fields_from(cls, {name: value for name, value in data.items() if name in known}, "model"))


def save_model(folder: Path, spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Write ``weights.safetensors`` and ``model.json`` into an existing folder; ``OSError`` where that cannot be."""
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, str(folder / "weights.safetensors"))
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{folder}: the weights could not be written: {error}") from error
    (folder / "model.json").write_text(json.dumps(spec.resolve().to_dict(), indent=1, sort_keys=True))


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Method, ModelSpec]:
    """The model of a folder in eval mode, weights loaded strictly, and its spec."""
    spec = ModelSpec.from_dict(json.loads((folder / "model.json").read_text()))
    model = spec.build()
    model.load_state_dict(load_file(str(folder / "weights.safetensors")), strict=True)
    return model.to(device).eval(), spec


def parameters(model: Method) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
