"""Official checkpoints in, models out: the two ways across the border of the store."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenloom.models import pretrained
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec, load_model, parameters, save_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.edits import override
from tokenloom.models.core.protocols import Density, Generator, LayoutError, Tokenizer, TokenLayout
from tokenloom.models.parts.conditions import ClassCondition, condition_of
from tokenloom.models.pretrained.parity import official_state
from tokenloom.models.pretrained.presets import PRESETS
from tokenloom.tasks.store.artifacts import Artifact, Outcome, Record, StepSpec, Store, Work, sha256_of
from tokenloom.tasks.store.lineage import lineage_of

#: Keys under which published checkpoint files nest the state dict.
_NESTED = ("model", "state_dict", "model_state_dict", "module", "trainer", "var_wo_ddp")


def read_weights(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The official state dict of a ``.safetensors`` or ``.pth`` file; nothing in the file is executed.

    Training checkpoints may hold an ``argparse.Namespace``, which is plain data.  With a ``prefix`` only names that begin with it are
    taken, without it.

    Raises:
        ConfigError: not such a file.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(str(path))
            return official_state(tensors) if any(key.startswith("state/") for key in tensors) else tensors
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{path}: not a checkpoint of plain tensors (.safetensors, or .pth without pickled classes): {error}") from error
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if prefix and isinstance(loaded, Mapping):
        loaded = {key.removeprefix(prefix): value for key, value in loaded.items() if key.startswith(prefix)}
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(f"{path}: holds no state dict (a mapping of names to tensors)")
    return dict(loaded)


def import_checkpoint(
    what: str, weights: Path, settings: Path | None, name: str, store: Store, tokenizer: str | None = None, encoder: str | None = None
) -> Outcome:
    """An official checkpoint as an artifact (tokenizer, generator, density), loaded strictly by key, with the published sampler as default.

    Args:
        what: a published checkpoint in ``tokenloom.models.pretrained.presets``, or a name in
            ``tokenloom.models.pretrained.families()`` together with ``settings``.
        weights: the checkpoint file.
        settings: JSON with the official constructor's settings under ``config``; over those of a preset.
        name: the artifact's name.
        store: where it goes.
        tokenizer: artifact of the tokenizer that a generator belongs to; of a preset by default the one imported by its preset's name.
        encoder: folder or hub name of the text model that a generator of texts belongs to; of a preset by default the published one.

    Raises:
        ConfigError: unknown name, unreadable file, missing tokenizer, or weights that do not fit.
    """
    families, preset = pretrained.families(), PRESETS.get(what)
    family = preset.family if preset else what
    if family not in families:
        near = " or ".join(difflib.get_close_matches(what, [*families, *PRESETS], 3))
        raise ConfigError(
            f"unknown family {family!r}; there are: {', '.join(sorted(families))}; "
            f"published checkpoints: {', '.join(sorted(PRESETS))}{f'; did you mean {near}?' if near else ''}"
        )
    if settings is None and preset is None:
        raise ConfigError(f"family {family!r} needs --settings; published checkpoints that need none: {_of(family) or 'none'}")
    given = _settings(settings)["config"] if settings else {}
    info = {"config": {**(preset.config if preset else {}), **given}}
    if tokenizer is None and preset and preset.tokenizer:
        try:
            store.resolve(preset.tokenizer, "tokenizer")
        except ConfigError as error:
            raise ConfigError(
                f"{what} belongs to the tokenizer {preset.tokenizer!r}, which is not in the store: tokenloom import {preset.tokenizer} "
                f"--weights {PRESETS[preset.tokenizer].file} first, or name another with --tokenizer"
            ) from error
        tokenizer = preset.tokenizer
    used = store.resolve(tokenizer, "tokenizer") if tokenizer else None
    spec, kind = _spec(family, families[family], info, used, store)
    spec = asked_in_words(spec, encoder or (preset.encoder if preset else ""))
    step = StepSpec(
        "import",
        1,
        kind,
        name,
        {"family": family, "config": info["config"], "weights": sha256_of(weights), **_named(spec)},
        {"tokenizer": used} if used else {},
    )

    prefix = preset.prefix if preset else ""
    return store.execute(step, lambda work: _convert(work, step, family, info, read_weights(weights, prefix), weights, spec, store))


def asked_in_words(spec: ModelSpec, encoder: str) -> ModelSpec:
    """The spec with the text encoder that makes its conditions ("": as it is).

    Raises:
        ConfigError: a model that takes no features of texts, or a folder that is not written in full.
    """
    if not encoder:
        return spec
    condition = condition_of(config := spec.config())
    if not hasattr(condition, "encoder"):
        raise ConfigError(f"--encoder {encoder!r}: this model is not conditioned on features of texts; leave it out")
    folder = Path(encoder)
    if (folder.is_dir() and not folder.is_absolute()) or encoder.startswith((".", "~")):
        raise ConfigError(f"--encoder {encoder!r}: give a hub name, or the whole path of a folder")
    return replace(spec, resolved=override(config, {"condition.encoder": encoder}, "--encoder").to_dict())


def _named(spec: ModelSpec) -> dict[str, str]:
    """The text encoder of a model that is asked in words."""
    encoder = getattr(condition_of(spec.config()), "encoder", "")
    return {"encoder": encoder} if encoder else {}


def _of(family: str) -> str:
    return ", ".join(name for name, preset in PRESETS.items() if preset.family == family)


def _convert(
    work: Work,
    step: StepSpec,
    family: str,
    info: dict[str, Any],
    official: dict[str, Tensor],
    weights: Path,
    spec: ModelSpec,
    store: Store,
) -> dict[str, Any]:
    """Load the checkpoint into our model, strictly by key, and save that as the artifact; its metrics."""
    model, used = spec.build(), step.inputs.get("tokenizer")
    if used is not None:
        cast(Generator, model).adopt(tokenizer=cast(Tokenizer, load_model(store.fetch(used))[0]))
    try:
        state = pretrained.families()[family].names(info).load(official)
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ConfigError(f"{weights}: does not fit family {family!r} with these settings: {reason}") from error
    # What a generator carries of its tokenizer comes from that artifact; everything else must be in the file.
    missing = [key for key in missing if used is None or not key.startswith("feed.quantizer.")]
    if missing or unexpected:
        raise ConfigError(f"{weights}: does not fit family {family!r}: missing {missing[:5]}, unexpected {unexpected[:5]}")
    save_model(work.scratch, spec, model.state_dict())
    for file in ("weights.safetensors", "model.json"):
        work.put_file(work.scratch / file, file)
    work.notes |= {"spec": spec.resolve().to_dict(), "parameters": parameters(model), "world_size": 0, "family": family}
    if isinstance(model, Tokenizer | Generator):
        work.notes["layout"] = model.layout.to_dict() | ({"tokenizer": step.fingerprint} if step.kind == "tokenizer" else {})
    return {"parameters": parameters(model)}


#: Names of the size of what is tokenized among official settings, the first that is there; 256 pixels where none is.
SIZES = ("image", "image_size", "crop_size", "resolution")


def _settings(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--settings {path}: not readable JSON: {error}") from error
    if not isinstance(info, dict):
        raise ConfigError(f"--settings {path}: must be a JSON object of settings")
    return info if isinstance(info.get("config"), dict) else {"config": info}


def classes_of(model: nn.Module) -> int:
    """How many classes a model is conditioned on; of a generator 1000 where it is conditioned on something else."""
    if isinstance(model, Density):
        return int(getattr(model.config, "classes", 0))
    condition = getattr(model, "condition", None)
    return condition.classes if isinstance(condition, ClassCondition) else 1000


def _spec(family: str, module: Any, info: Mapping[str, Any], tokenizer: Artifact | None, store: Store) -> tuple[ModelSpec, str]:
    try:
        with torch.device("meta"):
            built = module.build(info)
    except KeyError as error:
        raise ConfigError(f"--settings: config.{error.args[0]} is missing; it is a setting of the official {family} constructor") from error
    recipe, args = f"official/{family}", {"config": dict(info["config"])}
    if isinstance(built, Tokenizer):
        sizes = [info["config"][name] for name in SIZES if isinstance(info["config"].get(name), int)]
        given = {"signal": signals.image((sizes or [256])[0], 3).to_dict()}
        return ModelSpec("tokenizer", recipe, args, {}, given), "tokenizer"
    if isinstance(built, Density):
        channels, *plane = built.shape
        made_for: dict[str, Any] = {"signal": signals.image(plane[0], channels, plane[1]).to_dict(), "classes": classes_of(built)}
        return ModelSpec("density", recipe, args, {}, made_for), "density"
    if not isinstance(built, Generator):
        raise ConfigError(f"family {family!r} is a quantizer, a part of a tokenizer: import the whole tokenizer")
    if tokenizer is None:
        raise ConfigError(f"family {family!r} is a generator: name the artifact of its tokenizer with --tokenizer (import that first)")
    record = store.record(tokenizer)
    layout = record.notes["layout"]
    try:
        built.layout.check(TokenLayout.from_dict(layout))
    except LayoutError as error:
        raise ConfigError(f"--tokenizer {tokenizer.id}: not the tokenizer of this {family}: {error}") from error
    return ModelSpec(
        "generator", recipe, args, {}, {"layout": layout, "classes": classes_of(built), "tokenizer": record.notes["spec"]}
    ), "generator"


def export_model(reference: str, folder: Path, store: Store) -> list[Path]:
    """Write ``weights.safetensors``, ``model.json`` and a model card of an artifact into a folder.

    Raises:
        ConfigError: no such model, or the folder holds other files.
    """
    artifact = _model(reference, store)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"folder {str(folder)!r} is not empty: choose a new one")
    record = store.record(artifact)
    source = store.fetch(artifact, "weights.safetensors", "model.json")
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("weights.safetensors", "model.json"):
        shutil.copyfile(source / file, folder / file)
    (folder / "README.md").write_text(_card(record, store), encoding="utf-8")
    load_model(folder)  # what leaves the store can be loaded
    return [folder / file for file in ("weights.safetensors", "model.json", "README.md")]


def _model(reference: str, store: Store) -> Artifact:
    """The generator that a reference means, else the tokenizer."""
    kinds = ("generator", "tokenizer")
    if "/" in reference:
        kind = reference.strip("/").split("/")[-2]
        if kind not in kinds:
            raise ConfigError(f"{reference!r}: a {kind} cannot be exported; there are {' and '.join(kinds)}")
        return store.resolve(reference, kind)
    try:
        return store.resolve(reference, "generator")
    except ConfigError as problem:
        try:
            return store.resolve(reference, "tokenizer")
        except ConfigError:
            raise problem from None


def _card(record: Record, store: Store) -> str:
    made, spec = record.artifact, record.notes["spec"]
    lines = [
        f"# {made.id}",
        "",
        f"A {made.kind} trained by Tokenloom: recipe `{spec['recipe']}`, {record.notes['parameters']:,} parameters.",
        "",
        "```python",
        "from pathlib import Path",
        "from tokenloom.models.core.build import load_model",
        "",
        'model, spec = load_model(Path("."))',
        "```",
        "",
        "| number | value |",
        "|---|---|",
    ]
    lines += [f"| {k} | {v:.5g} |" for k, v in sorted(record.metrics.items()) if isinstance(v, (int, float))]
    lines += [
        "",
        "Made from: " + (", ".join(f"`{a.kind}/{a.id}`" for a in lineage_of(store, made)["ancestors"]) or "nothing in this store") + ".",
    ]
    lines += ["", f"Made {record.created[:10]} at commit {record.commit or 'unknown'}; files: `weights.safetensors`, `model.json`."]
    return "\n".join(lines) + "\n"
