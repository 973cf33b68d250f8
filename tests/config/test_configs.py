"""Run and cluster files: all that ship are right, every field is marked, and a mistake is one clear line."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tokenloom.configs import load, schema
from tokenloom.models.core.config import Config, ConfigError, role_of
from tokenloom.models.core.identity import identity_of
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings

RUNS = sorted(load.shipped("runs"))
SECTIONS = [s for s in vars(schema).values() if isinstance(s, type) and issubclass(s, schema.Section) and s is not schema.Section]


@pytest.mark.parametrize("name", RUNS)
def test_run_file_is_right_and_its_models_build(name: str) -> None:
    from tokenloom.tasks.runtime.checks import check_models

    config = load.load_run(name)
    assert config.name.replace("-", "_") == name
    check_models(config, classes=10)


@pytest.mark.parametrize("name", sorted(load.shipped("clusters")))
def test_cluster_file_is_right(name: str) -> None:
    assert load.load_cluster(name).execution.workers >= 1


def test_default_cluster_is_the_laptop_with_two_workers() -> None:
    assert load.load_cluster() == load.load_cluster("laptop")
    assert (load.load_cluster().execution.workers, load.load_cluster().execution.threads) == (2, 1)


def test_the_run_file_of_the_demo_says_what_its_values_mean() -> None:
    explained: set[str] = set()
    for line in load.shipped("runs")["digits_var"].read_text().splitlines():
        field, _, value = line.strip().partition(":")
        if line.lstrip().startswith("#") or not value.split("#")[0].strip():
            continue  # a comment, or a section
        if "#" in value:
            explained.add(field)
        # A field that stands a second time, and a mapping or list of fields, explain themselves.
        assert field in explained or value.strip()[0] in "{[" or field == "recipe", f"{field} has no comment"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_field_of_every_section_is_marked(section: type[BaseModel]) -> None:
    for name, info in section.model_fields.items():
        hint = type("Hint", (), {"__metadata__": tuple(info.metadata)})
        assert role_of(hint, f"{section.__name__}.{name}") in ("identity", "execution")


@pytest.mark.parametrize("settings", [OptimizerSettings, TrainSettings, ExecutionSettings], ids=lambda s: s.__name__)
def test_every_field_of_the_settings_is_marked(settings: type) -> None:
    hints = load.fields_of(settings)
    assert hints.keys() == {f.name for f in dataclasses.fields(settings)}
    for name, hint in hints.items():
        assert role_of(hint, name) in ("identity", "execution")


def test_an_unmarked_field_is_an_error() -> None:
    @dataclasses.dataclass(frozen=True)
    class Forgotten:
        steps: int = 1

    with pytest.raises(ConfigError, match=r"Forgotten\.steps is marked neither"):
        identity_of(Forgotten())

    class Section(schema.Section):
        steps: int = 1

    with pytest.raises(ConfigError, match=r"Section\.steps is marked neither"):
        schema.identity(Section())


def test_a_value_without_a_stable_form_is_an_error() -> None:
    config = load.load_run("smoke_var")
    odd = config.generator.model_copy(update={"args": {"depth": object()}})
    with pytest.raises(ConfigError, match="no stable serialization"):
        schema.identity(odd)


@pytest.mark.parametrize(
    ("edit", "changes"),
    [
        ("generator.train.steps=7", True),
        ("generator.train.optimizer.lr=0.5", True),
        ("data.validation=0.3", True),
        ("evaluate.seed=3", True),
        ("generator.train.log_every=7", False),
        ("generator.train.checkpoint_every=1", False),
        ("data.on_bad=stop", False),
        ("tokenizer.pinned=true", False),
    ],
)
def test_identity_changes_with_what_shapes_the_result_and_nothing_else(edit: str, changes: bool) -> None:
    before, after = load.load_run("smoke_var"), load.load_run("smoke_var", [edit])
    assert before != after
    assert (schema.identity(before) != schema.identity(after)) is changes


def test_sets_edit_the_document() -> None:
    config = load.load_run(
        "smoke_var",
        ["generator.args.depth=3", "generator.set.net.dropout=0.1", "tokenizer.train.optimizer.lr=1e-4", "register.floor.precision=0.5"],
    )
    assert config.generator.args["depth"] == 3
    assert config.generator.set == {"net.dropout": 0.1}
    assert config.tokenizer.train is not None
    assert config.tokenizer.train.optimizer.lr == 1e-4
    assert config.register_.floor == {"precision": 0.5}


def test_an_edit_changes_its_own_section_alone(tmp_path: Path) -> None:
    path = tmp_path / "alias.yaml"
    path.write_text(
        "name: a\ndata: {source: digits, size: 32}\ntokenizer: {recipe: var_vq, train: &train {steps: 5}}\n"
        "generator: {recipe: var, train: *train}\n"
    )
    config = load.load_run(str(path), ["generator.train.steps=7"])
    assert config.tokenizer.train is not None
    assert (config.tokenizer.train.steps, config.generator.train.steps) == (5, 7)


def test_cluster_edits_go_to_the_cluster() -> None:
    edits = ["cluster.execution.workers=3", "generator.args.depth=3"]
    assert load.load_cluster(None, edits).execution.workers == 3
    assert load.load_run("smoke_var", edits).generator.args["depth"] == 3


def test_a_whole_section_can_be_replaced() -> None:
    config = load.load_run("smoke_var", ["tokenizer={use: digits-var}"])
    assert config.tokenizer.use == "digits-var"
    assert config.tokenizer.recipe is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("generator.trian.steps=3", r"generator\.trian\.steps: unknown field 'trian'; did you mean 'train'\? Fields here: recipe"),
        ("generator.train={steps: 1, stpes: 2}", r"generator\.train\.stpes: unknown field \(value 2\); did you mean 'steps'"),
        ("generator.train.steps=many", r"generator\.train\.steps: 'many' cannot be used: .*integer"),
        ("generator.train.steps=0", r"train\.steps=0: must be at least 1"),
        ("data.validation=0.95", r"data\.validation: 0\.95 cannot be used: input should be less than 0\.9"),
        ("data.fit=cut", r"data\.fit: 'cut' cannot be used: .*'pad', 'crop' or 'resize'"),
        ("data={size: 8}", r"data\.source: is missing"),
        ("tokenizer.use=x", r"tokenizer: give either tokenizer\.recipe .* or tokenizer\.use"),
        ("name=a/b", r"name: 'a/b' cannot be used"),
        ("data.size.x=1", r"'size' is 32 in the run file"),
        ("generator.train.optimizer.lr=-1", r"optimizer\.lr=-1"),
        ("generator.train.steps", r"write path=value"),
        ("data={source: a", r"not valid YAML"),
        ("generator=null", r"sample is given, but there is no generator: leave sample out"),
    ],
)
def test_a_mistake_is_one_clear_line(edit: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load.load_run("smoke_var", [edit])
    assert len(str(caught.value).splitlines()) == 1


def test_each_problem_has_its_own_line(tmp_path: Path) -> None:
    document = load.shipped("runs")["smoke_var"].read_text().replace("size: 32", "size: big").replace("limit: 200", "limti: 200")
    path = tmp_path / "bad.yaml"
    path.write_text(document)
    with pytest.raises(ConfigError) as caught:
        load.load_run(str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(str(path)) for line in lines)
    assert "data.size" in lines[0]
    assert "did you mean 'limit'" in lines[1]


def test_unknown_run_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="unknown run 'digits-var'; did you mean 'digits_var'") as caught:
        load.load_run("digits-var")
    assert all(name in str(caught.value) for name in RUNS)


def test_files_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load.load_run(str(tmp_path / "none.yaml"))
    twice = tmp_path / "twice.yaml"
    twice.write_text("name: a\nname: b\n")
    with pytest.raises(ConfigError, match=r"line 2: 'name' is given twice"):
        load.load_run(str(twice))
    plain = tmp_path / "list.yaml"
    plain.write_text("- name\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load.load_run(str(plain))
    (tmp_path / "code.yaml").write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load.load_run(str(tmp_path / "code.yaml"))


def test_yaml_numbers_are_those_of_version_1_2() -> None:
    assert load.parse_yaml("[1e-3, 2E5, 1.5e+2, -.5e1, 1e, on]", "test") == [1e-3, 2e5, 150.0, -5.0, "1e", True]


def test_shipped_schema_is_current_and_accepts_what_ships() -> None:
    shipped = (resources.files("tokenloom.configs") / "run.schema.json").read_text()
    assert shipped == load.schema_text(), "run: python -m tokenloom.configs.load > configs/run.schema.json"
    document = json.loads(shipped)
    assert document["additionalProperties"] is False
    assert set(document["required"]) == {"name", "data"}
    assert "register" in document["properties"]  # as written in YAML, not as the attribute is called
    jsonschema = pytest.importorskip("jsonschema")
    for name in RUNS:
        jsonschema.validate(load.parse_yaml(load.shipped("runs")[name].read_text(), name), document)


def test_literal_metrics_are_the_default_ones() -> None:
    assert set(schema.METRICS) <= set(get_args(schema.Metric))


def test_recipe_configs_are_parts_configs() -> None:
    from tokenloom.models.core import registry

    config: Any = registry.get("var", "generator").config({"depth": 2})
    assert isinstance(config, Config)
