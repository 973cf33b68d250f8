"""Identities of configs: tags, canonical forms that survive renames and moves, formats of what is stored."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import FORMAT, ModelSpec
from tokenloom.models.core.config import Added, Config, ConfigError, Mark, canonical, from_dict, tags
from tokenloom.tasks.store import records
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.lineage import collect
from tokenloom.tasks.store.records import StepSpec


def test_every_config_type_of_a_recipe_has_a_tag() -> None:
    def walk(plain: object) -> None:
        if isinstance(plain, dict):
            if "type" in plain:
                assert plain["type"] in known
            for value in plain.values():
                walk(value)
        elif isinstance(plain, list):
            for value in plain:
                walk(value)

    known = tags()
    for name in registry.names():
        walk(registry.get(name).config().to_dict())


def test_tags_stay() -> None:
    """Stored configs name these types: a tag may come, none may go or change."""
    stored = json.loads((Path(__file__).parents[1] / "fixtures" / "tags.json").read_text())
    assert sorted(set(stored) - set(tags())) == []


def test_a_tag_belongs_to_one_type() -> None:
    with pytest.raises(TypeError, match=r"tag 'schedule.constant' of .* belongs to .*Constant"):

        class Other(Config, tag="schedule.constant"):
            pass


def test_a_type_without_a_tag_is_not_stored() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Plain(Config):
        size: int = 1

    with pytest.raises(ConfigError, match="has no tag"):
        canonical(Plain())


@pytest.mark.parametrize("name", registry.names())
def test_canonical_forms_are_read_back(name: str) -> None:
    recipe = registry.get(name)
    config = recipe.config(recipe.tiny)
    plain = json.loads(json.dumps(config.to_dict()))
    assert from_dict(plain) == config
    assert from_dict(plain).to_dict() == plain


@pytest.mark.parametrize("name", sorted(json.loads((Path(__file__).parents[1] / "fixtures" / "canonical.json").read_text())))
def test_canonical_forms_of_before_still_mean_the_same(name: str) -> None:
    """What recipes gave when tags came: any later version reads it and gives the same form, so the same fingerprint."""
    plain = json.loads((Path(__file__).parents[1] / "fixtures" / "canonical.json").read_text())[name]
    assert from_dict(plain).to_dict() == plain


@dataclass(frozen=True, kw_only=True)
class _Renamed(Config, tag="test.renamed"):
    width: Annotated[int, Mark("identity", stored="size")] = 1
    later: Added[float] = 0.5
    inner: Config | None = None


def test_names_types_and_later_fields() -> None:
    assert _Renamed(width=3).to_dict() == {"type": "test.renamed", "size": 3, "inner": None}
    assert _Renamed(later=1).to_dict() == {"type": "test.renamed", "size": 1, "later": 1.0, "inner": None}
    nested = _Renamed(inner=_Renamed(width=2))
    assert from_dict(nested.to_dict()) == nested
    assert from_dict({"type": "test.renamed", "inner": None}) == _Renamed()


@pytest.mark.parametrize(
    ("plain", "problem"),
    [
        ({"type": "test.unheard"}, "no config type has the tag 'test.unheard'"),
        ({"type": "test.renamed", "width": 2}, "has no field 'width'"),
        ({"type": "test.renamed", "size": "wide"}, "size: 'wide' is not a valid int"),
        ({"size": 1}, "no config type has the tag None"),
    ],
)
def test_a_form_that_cannot_be_read_names_what_is_wrong(plain: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        from_dict(plain, "model")


def test_a_resolved_spec_does_not_ask_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("tokenizer", "vq", dict(registry.get("vq").tiny), {}, {"signal": signals.image(16, 1).to_dict()}).resolve()
    before = spec.config()
    monkeypatch.setattr(registry.Recipe, "config", lambda *_: pytest.fail("the recipe was asked"))
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again.config() == before
    with pytest.raises(ConfigError, match="newer"):
        ModelSpec.from_dict({**spec.to_dict(), "format": FORMAT + 1})


def _store(tmp_path: Path) -> tuple[Store, StepSpec]:
    store = Store(str(tmp_path / "store"), tmp_path / "root")
    step = StepSpec("features", 1, "features", "x", {"a": 1})
    store.execute(step, lambda work: work.put("shards/a.bin", b"data") and {})
    return store, step


def _rewritten(store: Store, step: StepSpec, number: int | None) -> None:
    path = f"{step.folder}/record.json"
    plain = json.loads(store.storage.read(path))
    plain.pop("sha256")
    plain.pop("format")
    store.storage.write(path, records._record_bytes(plain if number is None else {**plain, "format": number}))


def test_a_newer_store_is_refused_by_name(tmp_path: Path) -> None:
    store, step = _store(tmp_path)
    _rewritten(store, step, records.FORMAT + 1)
    with pytest.raises(ConfigError, match=rf"record.json: format {records.FORMAT + 1} is newer than {records.FORMAT}.*update Tokenloom"):
        store.records()
    with pytest.raises(ConfigError, match="newer"):
        store.find(step)


def test_a_store_from_before_costs_one_line_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, step = _store(tmp_path)
    for name in ("y", "z"):
        other = replace(step, name=name, config={"name": name})
        store.execute(other, lambda work: {})
        _rewritten(store, other, None)
    _rewritten(store, step, None)
    with caplog.at_level(logging.WARNING):
        assert store.records() == []
        assert store.records("features") == []
    assert [r.getMessage().count("3 artifacts of an older version") for r in caplog.records] == [1]
    assert collect(store, dry_run=False) == []
    assert store.storage.exists(f"{step.folder}/shards/a.bin")
