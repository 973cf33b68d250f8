"""The model registry behind ``tasks/tracking.py``: log a served model, versions, aliases.

Unlike runs, nothing here is spooled: a registration that cannot reach the server fails, with the store complete.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import ConfigError
from tasks.errors import StepError

if TYPE_CHECKING:
    from tasks.tracking import Tracker


@dataclass(frozen=True)
class Version:
    """One version of a registered model; ``source`` is the address of its files, ``run_id`` the run that logged it."""

    name: str
    number: str
    run_id: str
    source: str
    tags: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """``models:/name/number``."""
        return f"models:/{self.name}/{self.number}"


class ModelRegistry:
    """Registered models of a tracker's server."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def log_model(
        self,
        run_id: str,
        *,
        code: Path,
        artifacts: Mapping[str, str],
        code_paths: list[str],
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        params: Mapping[str, Any],
        example: Any,
        pip_requirements: list[str],
        metadata: Mapping[str, Any] | None = None,
        name: str = "model",
    ) -> str:
        """Log a pyfunc model from code (no pickle) into a run.

        Args:
            code: the Python file that calls ``mlflow.models.set_model``.
            artifacts: name: local path, copied into the model.
            code_paths: folders of packages that travel with the model.
            inputs, outputs: column: MLflow type, e.g. ``{"class_id": "long"}``.
            params: name: default; the type is the default's.
            example: of the input, e.g. a list of rows.

        Returns:
            The model's URI, ``models:/m-…``.
        """
        with self._reached() as client:
            import mlflow
            from mlflow.models import ModelSignature
            from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

            kinds = {bool: DataType.boolean, int: DataType.long, float: DataType.double, str: DataType.string}

            def schema(columns: Mapping[str, str]) -> Any:
                return Schema([ColSpec(DataType[kind], column) for column, kind in columns.items()])

            given = ParamSchema([ParamSpec(key, kinds[type(value)], value) for key, value in params.items()])
            mlflow.set_tracking_uri(self._tracker.uri)
            mlflow.set_registry_uri(self._tracker.uri)
            status = client.get_run(run_id).info.status
            with mlflow.start_run(run_id=run_id):
                info = mlflow.pyfunc.log_model(
                    name=name,
                    python_model=str(code),
                    artifacts=dict(artifacts),
                    code_paths=code_paths,
                    signature=ModelSignature(schema(inputs), schema(outputs), given),
                    input_example=example,
                    pip_requirements=pip_requirements,
                    metadata=dict(metadata or {}),
                )
            if status == "RUNNING":  # start_run ends what it has entered; the run goes on
                client.update_run(run_id, status="RUNNING")
            return str(info.model_uri)

    def register(self, model_uri: str, name: str, run_id: str, tags: Mapping[str, str], description: str = "") -> Version:
        """A new version of ``name``; look for its tag in ``versions`` first, each call makes one."""
        from mlflow.exceptions import MlflowException

        with self._reached() as client:
            with contextlib.suppress(MlflowException):  # it exists
                client.create_registered_model(name)
            import mlflow

            mlflow.set_tracking_uri(self._tracker.uri)
            mlflow.set_registry_uri(self._tracker.uri)
            made = mlflow.register_model(model_uri, name, tags=dict(tags))
            if description:
                client.update_model_version(name, made.version, description=description)
            return _version(client.get_model_version(name, made.version))

    def versions(self, name: str) -> list[Version]:
        """All versions of a model, oldest first; none when there is no such model."""
        with self._reached() as client:
            found = client.search_model_versions(f"name = '{name}'", max_results=1000)
            # Search leaves the aliases out.
            return sorted((_version(client.get_model_version(name, v.version)) for v in found), key=lambda v: int(v.number))

    def tagged(self, name: str, key: str, value: str) -> Version | None:
        """The version that has this tag, the newest of several."""
        fitting = [version for version in self.versions(name) if version.tags.get(key) == value]
        return fitting[-1] if fitting else None

    def set_tag(self, name: str, number: str, key: str, value: str) -> None:
        """Tag one version."""
        with self._reached() as client:
            client.set_model_version_tag(name, number, key, value)

    def set_alias(self, name: str, alias: str, number: str) -> None:
        """Point an alias at a version."""
        with self._reached() as client:
            client.set_registered_model_alias(name, alias, number)

    def alias(self, name: str, alias: str) -> Version | None:
        """The version that an alias points at, None when there is none."""
        return next((version for version in self.versions(name) if alias in version.aliases), None)

    def download(self, reference: str) -> Path:
        """Local folder with the files of ``models:/name@alias`` or ``models:/name/version``.

        Raises:
            ConfigError: no such model, version or alias.
        """
        from mlflow.exceptions import MlflowException

        with self._reached():
            import mlflow

            target = Path(tempfile.mkdtemp(prefix="model-", dir=_folder(self._tracker.root / "scratch")))
            try:
                mlflow.set_tracking_uri(self._tracker.uri)
                mlflow.set_registry_uri(self._tracker.uri)
                return Path(mlflow.artifacts.download_artifacts(artifact_uri=reference, dst_path=str(target)))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise ConfigError(f"model {reference!r}: {error.message}; see `tokenloom runs`") from error
                raise

    @contextlib.contextmanager
    def _reached(self) -> Iterator[Any]:
        """The client; whatever goes wrong on the way becomes one clear error."""
        try:
            client = self._tracker.client
            yield client
        except (StepError, ConfigError):
            raise
        except Exception as error:
            logging.getLogger(__name__).debug("registry", exc_info=True)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise StepError(
                f"model registry at {self._tracker.shown}: {reason}. All artifacts are in the store: start the server and run again"
            ) from error


def _version(found: Any) -> Version:
    return Version(
        found.name, str(found.version), found.run_id or "", found.source or "", dict(found.tags or {}), tuple(found.aliases or ())
    )


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
