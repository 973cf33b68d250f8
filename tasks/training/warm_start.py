"""The weights that a generator's training starts from, where they are not fresh: an artifact's, or those of the champion."""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store
from tokenloom.tasks.tracking.register import CHAMPION
from tokenloom.tasks.tracking.registry import tags_of


def warm_start(wanted: str, model: str, fresh: StepSpec, store: Store, tracking: str | None = None) -> Artifact | None:
    """The generator that a training starts from; None for fresh weights (there is no champion yet).

    ``champion`` is decided once for the same tokens: what this recipe has made from them is found again, whatever it started
    from. Else each champion would be followed by a child of its own, on data that has not changed.

    Args:
        wanted: ``generator.warm_start``: ``champion``, or a reference to a generator artifact.
        model: name of the registered model.
        fresh: the same training from fresh weights.
        store: where generators are.
        tracking: address of the model registry; the store's own records tell who is champion without it.

    Raises:
        ConfigError: no such generator, or it knows the codes of another tokenizer.
    """
    if wanted == CHAMPION:
        for record in reversed(store.records("generator")):
            start = record.inputs.get("warm_start")
            made = replace(fresh, inputs={**fresh.inputs, "warm_start": start}) if start else fresh
            if record.step == fresh.step and made.fingerprint == record.artifact.fingerprint:
                return start
        found = champion(store, model, tracking)
    else:
        try:
            found = store.resolve(wanted, "generator")
        except ConfigError as error:
            raise ConfigError(f"generator.warm_start: {error}") from error
    if found is not None:
        theirs, ours = store.record(found).inputs.get("tokenizer"), fresh.inputs["tokenizer"]
        if theirs is None or theirs.fingerprint != ours.fingerprint:
            raise ConfigError(
                f"generator.warm_start: {found.id} knows the codes of tokenizer {theirs.id if theirs else 'unknown'}, this run has "
                f"{ours.id}: use that tokenizer (tokenizer.use), or leave warm_start out"
            )
    return found


def champion(store: Store, name: str, tracking: str | None) -> Artifact | None:
    """The generator behind the alias ``champion`` of a registered model; None if there is none.

    The registry says which, without MLflow being loaded; where it cannot say, the newest promotion in the store does.

    Raises:
        ConfigError: the champion's generator is not in the store.
    """
    tags = tags_of(tracking, name, CHAMPION) if tracking is not None else None
    if tags is None:
        promoted = [r for r in store.records("registration") if r.config["name"] == name and r.metrics.get("promoted")]
        found = promoted[-1].inputs["generator"] if promoted else None
        if found is not None and not store.storage.exists(f"{found.folder}/record.json"):
            raise ConfigError(
                f"generator.warm_start: the champion of {name} was made from {found.id}, which is not in the store: restore it, give "
                "another generator, or leave warm_start out"
            )
        return found
    return store.resolve(tags["tokenloom.generator"], "generator") if "tokenloom.generator" in tags else None
