"""Run files and cluster files: YAML, edited by ``--set path=value``, checked with one line a problem.

``python -m tokenloom.configs.load`` prints the JSON Schema of a run file (shipped as ``configs/run.schema.json``).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ValidationError

from tokenloom.configs.schema import ClusterConfig, RunConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.settings import TrainSettings

_Model = TypeVar("_Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML with the floats of version 1.2 (``1e-3`` is a number) and without duplicate keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: {key!r} cannot be a key")
        if key in result:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: {key!r} is given twice; keep one")
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: not YAML, or a key given twice; names the place.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from error
    except ValueError as error:  # an impossible date or number
        raise ConfigError(f"{where}: not valid YAML: {error}; quote what is a text") from error


def shipped(folder: str) -> dict[str, Any]:
    """Name to file of the YAML files that ship in ``configs/runs`` or ``configs/clusters``."""
    files = (resources.files("tokenloom.configs") / folder).iterdir()
    return {f.name.removesuffix(".yaml"): f for f in sorted(files, key=lambda f: f.name) if f.name.endswith(".yaml")}


def load_run(name_or_path: str, sets: Iterable[str] = ()) -> RunConfig:
    """The run of this name (``configs/runs``) or path, with ``path=value`` edits applied.

    Raises:
        ConfigError: unknown run, not YAML, unknown field, wrong type or impossible value; one line a problem.
    """
    document, where = _document(name_or_path, "runs", "run")
    return build(RunConfig, document, (s for s in sets if not s.startswith("cluster.")), where)


def load_cluster(name_or_path: str | None = None, sets: Iterable[str] = ()) -> ClusterConfig:
    """The cluster of this name (``configs/clusters``) or path; ``laptop`` if None. Edits are ``cluster.path=value``.

    Raises:
        ConfigError: as ``load_run``.
    """
    document, where = _document(name_or_path or "laptop", "clusters", "cluster")
    return build(ClusterConfig, document, [s.removeprefix("cluster.") for s in sets if s.startswith("cluster.")], where)


def edited(name_or_path: str, sets: Iterable[str] = ()) -> dict[str, Any]:
    """The document of a run, edited by ``path=value`` strings, as a run file may hold it.

    Raises:
        ConfigError: as ``load_run``.
    """
    document, where = _document(name_or_path, "runs", "run")
    edits = [text for text in sets if not text.startswith("cluster.")]
    build(RunConfig, document, edits, where)
    return _edited(RunConfig, document, edits)


def build(model: type[_Model], document: dict[str, Any], sets: Iterable[str], where: str) -> _Model:
    """Check a document, edited by ``path=value`` strings, against a section's schema."""
    document = _edited(model, document, sets)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        lines = [_line(model, problem) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))) from error


def _edited(model: type[BaseModel], document: dict[str, Any], sets: Iterable[str]) -> dict[str, Any]:
    document = _copy(document)
    for item in sets:
        path, equals, value = item.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {item!r}: write path=value, e.g. --set generator.train.steps=2000")
        _assign(document, model, path.strip().split("."), parse_yaml(value, f"--set {path}"), path.strip())
    return document


def _copy(value: Any) -> Any:
    """A copy in which nothing is shared: with YAML's anchors one mapping can stand in two places."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _document(name_or_path: str, folder: str, what: str) -> tuple[dict[str, Any], str]:
    known = shipped(folder)
    path = Path(name_or_path).expanduser()
    if name_or_path in known:
        text, where = known[name_or_path].read_text(encoding="utf-8"), f"configs/{folder}/{name_or_path}.yaml"
    elif path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
        where = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ConfigError(f"{where}: cannot be read: {reason}; give a {what} file (YAML) or one of: {', '.join(known)}") from error
    else:
        near = difflib.get_close_matches(name_or_path.replace("-", "_"), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"unknown {what} {name_or_path!r}{hint} There are: {', '.join(known)}; or give a path to a YAML file")
    document = parse_yaml(text, where)
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: must be a mapping of fields, got {type(document).__name__}")
    return document, where


def _unwrap(hint: Any) -> Any:
    """The section, dataclass or mapping in ``Annotated[X | None, …]``; any other type as it is."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        return _unwrap(next(a for a in get_args(hint) if a is not type(None)))
    return hint


def fields_of(section: Any) -> dict[str, Any]:
    """Field name (as written in YAML) to type hint, of a section or settings dataclass; empty for a plain value."""
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {info.alias or name: info.annotation for name, info in section.model_fields.items()}
    if isinstance(section, type) and dataclasses.is_dataclass(section):
        hints = get_type_hints(section, include_extras=True)
        return {f.name: hints[f.name] for f in dataclasses.fields(section)}
    return {}


def _assign(document: dict[str, Any], section: Any, path: list[str], value: Any, whole: str) -> None:
    head, *rest = path
    fields = fields_of(section)
    if section is TrainSettings and head == "as" and not rest:  # the published training, read before the settings are checked
        document[head] = value
        return
    if head not in fields:
        raise ConfigError(f"--set {whole}: unknown field {head!r}{_nearest(head, fields)}")
    if not rest:
        document[head] = value
        return
    inner = _unwrap(fields[head])
    if document.get(head) is None:
        document[head] = {}
    if not isinstance(document[head], dict):
        raise ConfigError(f"--set {whole}: {head!r} is {document[head]!r} in the run file, not a mapping")
    if fields_of(inner):
        _assign(document[head], inner, rest, value, whole)
    elif get_origin(inner) is dict or inner is dict:
        # args, set and floor are free mappings: a dotted rest is one key, as in ``set: {net.dropout: 0.1}``.
        document[head][".".join(rest)] = value
    else:
        raise ConfigError(f"--set {whole}: {head!r} is a plain value and has no field {rest[0]!r}")


def _nearest(name: str, fields: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, fields, n=3, cutoff=0.5)
    return (f"; did you mean {' or '.join(map(repr, near))}?" if near else ".") + f" Fields here: {', '.join(fields)}"


def _line(model: type[BaseModel], problem: Any) -> str:
    """One problem in plain words: field path, value, what to do."""
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location) or "run file"
    value = problem.get("input")
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "…"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section: Any = model
        for part in location[:-1]:
            section = _unwrap(fields_of(section).get(part))
        return f"{path}: unknown field (value {shown}){_nearest(location[-1], fields_of(section))}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{path}: is missing; add it"
    message = re.sub(r"^(Value error|Assertion failed), ", "", problem["msg"])
    if isinstance(value, Mapping) or path == "run file":
        return f"{path}: {message}"
    return f"{path}: {shown} cannot be used: {message[0].lower()}{message[1:]}"


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run file, for editors (``# yaml-language-server: $schema=…``)."""
    schema = RunConfig.model_json_schema(by_alias=True)
    train = schema["$defs"]["TrainSettings"]  # {as: paper} is the published training, read before the settings are checked
    train["properties"]["as"] = {"const": "paper", "description": "the published training; fields beside it win"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "Tokenloom run"}


def schema_text() -> str:
    """The text of ``configs/run.schema.json``."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
