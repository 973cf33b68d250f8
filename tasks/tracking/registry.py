"""MLflow's model registry: logging a servable model, versions, aliases (part of the one door to MLflow)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.surroundings import proxied
from tokenloom.tasks.tracking.addresses import request
from tokenloom.tasks.tracking.runs import FINGERPRINT
from tokenloom.tasks.tracking.tracker import Tracker

#: Tag of a version that has been champion.
PROMOTED = "tokenloom.promoted"
_LONGEST = 4500  # characters of a description that every MLflow store takes


@dataclass(frozen=True)
class Version:
    """One registered version: name, number, tags, and the aliases that point to it."""

    name: str
    number: str
    tags: dict[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """``models:/NAME/NUMBER``."""
        return f"models:/{self.name}/{self.number}"


@dataclass(frozen=True)
class Servable:
    """What MLflow needs to serve a model: its code, files, interface and requirements.

    ``inputs``, ``outputs`` and ``params`` map names to MLflow types; a parameter's value is (type, default).
    """

    code: Path
    packages: Sequence[Path]
    bundle: Path
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    params: Mapping[str, tuple[str, Any]]
    example: Mapping[str, Sequence[Any]]
    requirements: Sequence[str]
    metadata: Mapping[str, Any]


class Registry:
    """The model registry of a tracker.

    Raises:
        StepError: from every method, when the server is away.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def check(self) -> None:
        """See that the server answers."""
        with self._speaking():
            self._tracker.client.search_registered_models(max_results=1)

    def find(self, name: str, fingerprint: str) -> Version | None:
        """The version of this name that was made under a fingerprint."""
        with self._speaking():
            found = [v for v in self._versions(name) if v.tags.get(FINGERPRINT) == fingerprint]
            return self._whole(found[0]) if found else None

    def alias(self, name: str, alias: str) -> Version | None:
        """The version that an alias points to, None when there is no such alias or model."""
        from mlflow.exceptions import MlflowException

        with self._speaking():
            try:
                return self._whole(self._tracker.client.get_model_version_by_alias(name, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def numbered(self, name: str, number: str) -> Version:
        """The version of this number.

        Raises:
            ConfigError: there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            with self._speaking():
                return self._whole(self._tracker.client.get_model_version(name, number))
        except MlflowException as error:
            with self._speaking():
                there = sorted(int(v.version) for v in self._versions(name))
            raise ConfigError(f"models:/{name}/{number}: no such version; it has: {', '.join(map(str, there)) or 'none'}") from error

    def set_alias(self, version: Version, alias: str) -> None:
        """Point an alias to a version."""
        with self._speaking():
            self._tracker.client.set_registered_model_alias(version.name, alias, version.number)

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._speaking():
            for key, value in tags.items():
                self._tracker.client.set_model_version_tag(version.name, version.number, key, value)

    def model_tags(self, name: str) -> dict[str, str]:
        """Tags of a registered model; none where it is not registered."""
        from mlflow.exceptions import MlflowException

        with self._speaking():
            try:
                return dict(self._tracker.client.get_registered_model(name).tags)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise

    def tag_model(self, name: str, tags: Mapping[str, str]) -> None:
        """Set tags of a registered model."""
        with self._speaking():
            for key, value in tags.items():
                self._tracker.client.set_registered_model_tag(name, key, value)

    def champions(self, name: str) -> list[str]:
        """Numbers of the versions that have been champion."""
        with self._speaking():
            return [str(v.version) for v in self._versions(name) if PROMOTED in v.tags]

    def register(
        self, name: str, run_id: str, servable: Servable, description: str, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> Version:
        """Log a model into a run and make it a new version; the caller has seen to it that there is none yet."""
        with self._speaking(), self._global() as mlflow:
            info = _log_model(mlflow, run_id, servable)
            client = self._tracker.client
            for key, value in metrics.items():
                client.log_metric(run_id, f"model/{key}", float(value), model_id=info.model_id)
            with contextlib.suppress(mlflow.exceptions.MlflowException):  # it exists
                client.create_registered_model(name, tags={"tokenloom": "true"})
            made = client.create_model_version(
                name, info.model_uri, run_id=run_id, tags=dict(tags), description=description[:_LONGEST], model_id=info.model_id
            )
            return self._whole(made)

    def download(self, uri: str) -> Path:
        """A local folder with a registered model's files (``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``), kept in the node cache.

        Raises:
            ConfigError: there is no such model or version.
        """
        from mlflow.exceptions import MlflowException

        name, _, rest = uri.removeprefix("models:/").partition("@")
        number = rest
        try:
            with self._speaking(), self._global() as mlflow:
                if rest:
                    number = str(self._tracker.client.get_model_version_by_alias(name, rest).version)
                else:
                    name, _, number = name.rpartition("/")
                version = self._tracker.client.get_model_version(name, number)
                key = version.tags.get(FINGERPRINT) or f"{version.run_id}-{number}"
                folder = self._tracker.root / "cache" / "registered" / f"{name}-{key}"
                if not (folder / "MLmodel").is_file():
                    arriving = folder.with_name(f".{folder.name}.{os.getpid()}")
                    shutil.rmtree(arriving, ignore_errors=True)
                    arriving.mkdir(parents=True)
                    mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{number}", dst_path=str(arriving))
                    shutil.rmtree(folder, ignore_errors=True)
                    arriving.rename(folder)
                return folder
        except MlflowException as error:
            raise ConfigError(f"{uri}: {_first_line(error)}; see `tokenloom runs` for what is registered") from error

    def _versions(self, name: str) -> list[Any]:
        return list(self._tracker.client.search_model_versions(f"name = '{name}'"))

    def _whole(self, version: Any) -> Version:
        # a search leaves the aliases out
        full = self._tracker.client.get_model_version(version.name, version.version)
        return Version(full.name, str(full.version), dict(full.tags), tuple(full.aliases))

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (StepError, ConfigError):
            raise
        except MlflowException as error:
            if error.error_code != "INTERNAL_ERROR":
                raise
            raise self._away(error) from error
        except Exception as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> StepError:
        uri, shown = self._tracker.uri, self._tracker.shown
        if uri.startswith(("http://", "https://")):
            return StepError(
                f"the tracking server {shown} is away ({_first_line(error)}{proxied(uri)}). "
                "Everything else is in the store: start it and run again"
            )
        return StepError(
            f"the model registry in {shown} cannot be used ({type(error).__name__}: {_first_line(error)}). "
            "Everything else is in the store: see `tokenloom doctor`, put it right and run again"
        )

    @contextlib.contextmanager
    def _global(self) -> Iterator[Any]:
        """The ``mlflow`` module pointed at this tracker; its fluent functions have no client of their own."""
        import mlflow
        import mlflow.pyfunc

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # ours is the one that people watch
        before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
        addresses = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
        mlflow.set_tracking_uri(self._tracker.uri)
        mlflow.set_registry_uri(self._tracker.uri)
        try:
            yield mlflow
        finally:
            mlflow.set_tracking_uri(before[0])
            mlflow.set_registry_uri(before[1])
            for name, value in addresses.items():  # MLflow sets them too, and the next run of this process would go by them
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _log_model(mlflow: Any, run_id: str, servable: Servable) -> Any:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(kind, name) for name, kind in servable.inputs.items()]),
        outputs=Schema([ColSpec(kind, name) for name, kind in servable.outputs.items()]),
        params=ParamSchema([ParamSpec(name, DataType[kind], default) for name, (kind, default) in servable.params.items()]),
    )
    defaults = {name: default for name, (_, default) in servable.params.items()}
    with mlflow.start_run(run_id=run_id):
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(servable.code),
            artifacts={"bundle": str(servable.bundle)},
            code_paths=[str(path) for path in servable.packages],
            signature=signature,
            input_example=(pd.DataFrame(dict(servable.example)), defaults),
            pip_requirements=list(servable.requirements),
            metadata=dict(servable.metadata),
        )


def is_registered(uri: str, name: str, fingerprint: str) -> bool | None:
    """Whether a version with this fingerprint is there, without importing MLflow; None when that cannot be known now.

    SQLite is queried directly, a server over its REST interface.
    """
    try:
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///"))
            if not path.is_file():
                return False
            with contextlib.closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True, timeout=2)) as database:
                query = "select count(*) from model_version_tags where name = ? and key = ? and value = ?"
                return bool(database.execute(query, (name, FINGERPRINT, fingerprint)).fetchone()[0])
        if uri.startswith(("http://", "https://")):
            versions = _get(uri, "model-versions/search", filter=f"name='{name}'", max_results="1000").get("model_versions", [])
            pair = {"key": FINGERPRINT, "value": fingerprint}
            return any(pair in version.get("tags", []) for version in versions)
    except sqlite3.OperationalError as error:
        return False if "no such table" in str(error) else None
    except (OSError, ValueError):
        return None
    return None


def tags_of(uri: str, name: str, alias: str) -> dict[str, str] | None:
    """Tags of the version behind an alias (none without the alias), without importing MLflow; None when that cannot be known.

    A registry that does not have the model at all may have lost it: that is not known either.
    """
    try:
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///"))
            with contextlib.closing(sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True, timeout=2)) as database:
                if not database.execute("select count(*) from registered_models where name = ?", (name,)).fetchone()[0]:
                    return None
                query = """select t.key, t.value from model_version_tags t join registered_model_aliases a
                    on a.name = t.name and a.version = t.version where a.name = ? and a.alias = ?"""
                return dict(database.execute(query, (name, alias)).fetchall())
        if uri.startswith(("http://", "https://")):
            model = _get(uri, "registered-models/get", name=name)["registered_model"]
            numbers = [each["version"] for each in model.get("aliases", []) if each["alias"] == alias]
            if not numbers:
                return {}
            version = _get(uri, "model-versions/get", name=name, version=numbers[0])["model_version"]
            return {tag["key"]: tag["value"] for tag in version.get("tags", [])}
    except (sqlite3.OperationalError, OSError, ValueError, KeyError):
        return None
    return None


def _get(uri: str, what: str, **query: str) -> Any:
    """One answer of MLflow's REST interface."""
    with urllib.request.urlopen(request(uri, f"api/2.0/mlflow/{what}?{urllib.parse.urlencode(query)}"), timeout=2) as answer:
        return json.load(answer)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
