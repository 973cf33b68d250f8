"""Where a run works: its root folder, store, cluster and tracking, opened when they are first used."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tokenloom.configs.load import load_cluster
from tokenloom.configs.schema import ClusterConfig
from tokenloom.flows import screen
from tokenloom.flows.screen import Done
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime import surroundings
from tokenloom.tasks.tracking import addresses

if TYPE_CHECKING:
    from tokenloom.tasks.store.artifacts import Artifact, Store
    from tokenloom.tasks.tracking.tracker import Tracker

#: The root folder where no other is given: beside you, so that two projects do not mix.
ROOT = ".tokenloom"


@dataclass
class Workspace:
    """The surroundings of a run; made from plain values, so that a deployment can carry them."""

    name: str
    root: Path
    store_uri: str
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    done: list[Done] = field(default_factory=list)
    _held: ExitStack = field(default_factory=ExitStack, repr=False)

    @classmethod
    def open(
        cls, name: str = "tokenloom", root: str | None = None, store: str | None = None, cluster: ClusterConfig | None = None
    ) -> Workspace:
        """From options or, where they are None, ``TOKENLOOM_ROOT``, ``TOKENLOOM_STORE`` and the defaults.

        Raises:
            ConfigError: the root folder cannot be made, or holds what a database's address cannot.
        """
        surroundings.settle()
        folder = _absolute(root or os.environ.get("TOKENLOOM_ROOT") or ROOT, "--root")
        surroundings.refuse_root(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--root {str(folder)!r}: cannot be made: {error.strerror}; choose another with --root or TOKENLOOM_ROOT"
            ) from error
        uri = store or os.environ.get("TOKENLOOM_STORE") or str(folder / "store")
        if re.match(r"\w+:/(?!/)", uri):
            raise ConfigError(f"--store {uri!r}: an address has two slashes after the colon, as in s3://bucket/prefix")
        if "://" not in uri:
            uri = str(_absolute(uri, "--store"))
        return cls(name, folder, uri, cluster or load_cluster())

    def check(self) -> None:
        """See that a run finds what it needs around it.

        Raises:
            ConfigError: a folder that cannot be written or is full, an address of tracking that cannot be one, or settings of Prefect.
        """
        surroundings.check(self.root)
        addresses.check(self.tracker.uri)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it says the same at length
                importlib.import_module("prefect.settings").Settings()  # of everything; a run needs Prefect anyway
        except ValidationError as error:
            first = error.errors()[0]
            field = f"{error.title}, {'.'.join(map(str, first['loc']))}={first['input']!r}"
            where = "the variables PREFECT_*, the profile, and .env or prefect.toml where you stand"
            raise ConfigError(f"Prefect's settings cannot be used: {field}: {first['msg']}; look at {where}") from error

    @cached_property
    def store(self) -> Store:
        """The artifact store."""
        from tokenloom.tasks.store.artifacts import Store

        return Store(self.store_uri, self.root)

    @cached_property
    def tracker(self) -> Tracker:
        """MLflow: one experiment a run name."""
        from tokenloom.tasks.tracking.tracker import Tracker

        # Pictures and models go where the artifacts are, if that is not this machine.
        artifacts = f"{self.store_uri.rstrip('/')}/mlflow" if self.store_uri.startswith("s3://") else None
        return Tracker(self.cluster.tracking_uri, self.root, self.name, artifacts)

    @property
    def report(self) -> Callable[[str, int, int, dict[str, float]], None]:
        """Where steps report their progress."""
        return screen.current().report

    def begin(self, name: str) -> None:
        """A step starts."""
        self.done = [each for each in self.done if each.name != name]  # an earlier attempt
        screen.current().begin(name)

    def end(self, done: Done) -> None:
        """A step has ended."""
        self.done.append(done)
        screen.current().end(done)

    def say(self, text: str) -> None:
        """One line for people about the step that has ended."""
        screen.current().say(f"  {text}")

    def artifact(self, name: str) -> Artifact | None:
        """The artifact that a step of this run made or found."""
        return next((d.artifact for d in self.done if d.name == name), None)

    def __enter__(self) -> Workspace:
        """Hold one Ray session for all steps (started on first use), and send what tracking could not take before."""
        from tokenloom.tasks.runtime.cluster import session

        self._held.enter_context(session(self.cluster, self.root))
        self.tracker.sync()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.tracker.sync()
        finally:
            self._held.close()


def _absolute(given: str, option: str) -> Path:
    """A folder that a person named, in full.

    Raises:
        ConfigError: it cannot be said where that is.
    """
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError as error:
        raise ConfigError(f"{option} {given!r}: there is no such user or home folder; give a whole path") from error
