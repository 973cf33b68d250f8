"""Many runs in one Ray session, one after another, for the leaderboards: what the store has is not done again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from tokenloom.configs.schema import ClusterConfig, RunConfig
from tokenloom.flows import pipeline, planning
from tokenloom.flows.workspace import Workspace
from tokenloom.tasks.runtime.cluster import session
from tokenloom.tasks.runtime.errors import Preempted
from tokenloom.tasks.store.artifacts import Store

#: Exit status of a command that stopped at its time limit: come back.
COME_BACK = 75


@dataclass
class Suite:
    """The runs of a root folder: names of those that are done and of those that failed, and whether it was stopped."""

    root: Path
    cluster: ClusterConfig
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stopped: bool = False

    @property
    def status(self) -> int:
        """The command's exit status."""
        return COME_BACK if self.stopped else int(bool(self.failed))

    @property
    def store(self) -> Store:
        """Where the runs are."""
        return Workspace.open("leaderboard", str(self.root)).store

    def finished(self, config: RunConfig) -> bool:
        """Whether the store has all of a run."""
        work = Workspace.open(config.name, str(self.root))
        return all(one.status == "cached" for one in planning.plan(config, work.store, work.tracker.uri))

    def run(self, configs: Mapping[str, RunConfig], minutes: float = 0) -> None:
        """Run what is missing; a run that fails is told, and the next one starts.  A signal stops it for now, as running out of time does.

        Args:
            configs: name shown to the run.
            minutes: start none after this time; 0 is no limit.
        """
        console, started = Console(stderr=True), time.monotonic()
        self.root.mkdir(parents=True, exist_ok=True)
        with session(self.cluster, self.root):
            for i, (name, config) in enumerate(configs.items(), 1):
                if minutes and time.monotonic() - started > 60 * minutes:
                    console.print(f"stopped before {name}: the same command goes on")
                    self.stopped = True
                    return
                console.print(f"[{i}/{len(configs)}] {name}", markup=False)
                try:
                    if not self.finished(config):
                        pipeline.run(config, Workspace.open(config.name, str(self.root), cluster=self.cluster))
                    self.done.append(config.name)
                except Preempted as error:
                    console.print(f"    {error}", markup=False)
                    self.stopped = True
                    return
                except Exception as error:
                    self.failed.append(name)
                    console.print(f"    {type(error).__name__}: {error}", markup=False)


def between(page: Path, begin: str, end: str, block: str) -> None:
    """Write a block between the marks of a page."""
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{block}{end}{rest.split(end)[1]}")
