"""The only door to MLflow: runs, metrics, pictures, and the model registry.

Training never waits for tracking. When the server is away, at the start too, one warning is given, everything is spooled
under ``<root>/spool`` and ``sync`` delivers it later, each point once. There is one MLflow run an artifact, found by its
fingerprint, however often the work was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenloom.tasks.runtime.errors import Preempted
from tokenloom.tasks.runtime.surroundings import proxied
from tokenloom.tasks.store.leases import file_lock
from tokenloom.tasks.store.records import StepSpec
from tokenloom.tasks.tracking import addresses, locations
from tokenloom.tasks.tracking.runs import FINGERPRINT, KIND, NOTE, Event, Sender, describe

log = logging.getLogger(__name__)

#: Short timeouts and one retry: a server that is away must not hold up training (MLflow's own defaults wait for minutes).
HTTP_LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}


class Tracker:
    """Where runs are tracked.

    Args:
        uri: of an MLflow server; ``MLFLOW_TRACKING_URI``, else SQLite under the root, if not given. A server's login does not stay in it
            (``tasks/tracking/addresses.py``).
        root: local root folder, for the database, pictures and the spool.
        experiment: MLflow experiment of the runs.
        artifacts: address (``s3://…``) below which MLflow's own files lie; under the root, or where a server keeps them, if not given.
            The server and whoever looks at the runs need its credentials (``AWS_*``) then.
    """

    def __init__(self, uri: str | None, root: Path, experiment: str, artifacts: str | None = None) -> None:
        self.root = Path(root).absolute()
        self.uri = addresses.tracking(uri, self.root)
        self.experiment, self._artifacts = experiment, artifacts
        self.away = False
        self._warned = False
        self._client: Any = None

    @contextlib.contextmanager
    def track(self, step: StepSpec, artifact_folder_uri: str, span: tuple[float, float] | None = None) -> Iterator[Run]:
        """The MLflow run of a step's artifact, created or gone on with; it ends with the block.

        Args:
            step: that makes the artifact.
            artifact_folder_uri: where that lies.
            span: when the work began and ended (seconds since 1970), of work that is over; the block itself if not given.
        """
        head = describe(step, artifact_folder_uri, self.experiment)
        if span is not None:
            head["started"] = int(span[0] * 1000)
        run = Run(self, head)
        try:
            yield run
        except (KeyboardInterrupt, Preempted):
            run.end("KILLED")
            raise
        except BaseException:
            run.end("FAILED")
            raise
        run.end("FINISHED", None if span is None else span[1])

    def sync(self) -> int:
        """Send what was spooled, each point once; the number of events delivered.  Does nothing without a spool."""
        folders = sorted(p for p in self.spool.glob("*") if (p / "events.jsonl").is_file()) if self.spool.is_dir() else []
        delivered = 0
        self.away = False  # look again
        for folder in folders:
            with file_lock(self.root / "locks" / f"spool-{folder.name}.lock", f"the spool of {folder.name}"):
                if not (folder / "events.jsonl").is_file():
                    continue
                events = _events(folder / "events.jsonl")
                head = json.loads((folder / "run.json").read_text())
                if not self.attempt(lambda head=head, events=events, folder=folder: _deliver(self, head, events, folder)):
                    return delivered
                delivered += len(events)
                shutil.rmtree(folder)
        return delivered

    def attempt(self, send: Any) -> bool:
        """Try to send; when the server is away, warn once and say so."""
        if self.away:
            return False
        try:
            send()
        except Exception as error:  # whatever tracking does, training goes on
            self.away = True
            if not self._warned:
                self._warned = True
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                via = proxied(self.uri)
                log.warning("tracking at %s is away (%s%s): metrics are spooled in %s and sent later", self.shown, reason, via, self.spool)
            return False
        return True

    @property
    def shown(self) -> str:
        """The address without credentials."""
        return addresses.shown(self.uri)

    @property
    def client(self) -> Any:
        """An ``MlflowClient`` on a database that is ready; raises whatever MLflow does when it is away."""
        if self._client is None:
            for name, value in HTTP_LIMITS.items():
                os.environ.setdefault(name, value)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            # Two processes that create one SQLite database at a time fail in its migrations: one after the other.
            with file_lock(self.root / "locks" / "mlflow.lock", "the tracking database"):
                if addresses.is_own(self.uri, self.root) and (moved := locations.put_right(self.root)):
                    log.info("%s: what lay under %s is looked for here from now on", self.root, ", ".join(moved))
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                client.get_experiment_by_name(self.experiment)
            self._client = client
        return self._client

    def experiment_id(self, name: str | None = None) -> str:
        """The experiment of a name (the tracker's own), created on first use; artifacts lie under the root unless a server keeps them."""
        client, name = self.client, name or self.experiment
        with file_lock(self.root / "locks" / "mlflow.lock", "the tracking database"):
            found = client.get_experiment_by_name(name)
            if found is not None:
                if KIND not in found.tags:  # of an earlier version
                    self._mark(str(found.experiment_id), name)
                return str(found.experiment_id)
            location = (self.root / "mlruns" / name).as_uri() if self.uri.startswith("sqlite:") else None
            if self._artifacts is not None:
                location = f"{self._artifacts}/{name}"
            made = str(client.create_experiment(name, artifact_location=location))
            self._mark(made, name)
            return made

    def _mark(self, experiment: str, name: str) -> None:
        """Have MLflow open an experiment as one of model training; it takes those that it cannot tell for conversations."""
        self.client.set_experiment_tag(experiment, KIND, "custom_model_development")
        self.client.set_experiment_tag(experiment, NOTE, f"What `tokenloom run` made under the name `{name}`: one MLflow run an artifact.")

    def run_id(self, fingerprint: str) -> str | None:
        """The MLflow run of an artifact, in whatever experiment it was first made; None when there is none."""
        everywhere = [experiment.experiment_id for experiment in self.client.search_experiments()]
        wanted = f"tags.`{FINGERPRINT}` = '{fingerprint}'"
        found = self.client.search_runs(everywhere, wanted, max_results=1, order_by=["attributes.start_time ASC"])
        return str(found[0].info.run_id) if found else None

    @property
    def spool(self) -> Path:
        """Folder of what waits for the server."""
        return self.root / "spool"


class Run:
    """One MLflow run: logs now, or into the spool while the server is away."""

    def __init__(self, tracker: Tracker, head: Event) -> None:
        self._tracker, self._head = tracker, head
        self._folder = tracker.spool / f"{head['kind']}-{head['fingerprint']}"
        self._sender: Sender | None = None
        self._send({"kind": "begin"})

    @property
    def id(self) -> str | None:
        """The MLflow run's id, None while it could not be created."""
        return self._sender.run_id if self._sender else None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one step; a point that the run already has (same name and step) is dropped."""
        self._send({"kind": "metrics", "step": step, "time": int(time.time() * 1000), "values": dict(metrics)})

    def picture(self, name: str, picture: Path | str | bytes) -> None:
        """A PNG, shown under ``pictures/<name>.png``: a path or its bytes."""
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        self._file(f"pictures/{Path(name).stem}.png", data)

    def file(self, path: Path | str, folder: str = "files") -> None:
        """Any local file, kept under its own name."""
        self._file(f"{folder}/{Path(path).name}", Path(path).read_bytes())

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        self._send({"kind": "tags", "values": dict(tags)})

    def end(self, status: str, at: float | None = None) -> None:
        """FINISHED, FAILED or KILLED, now or ``at`` a time; a run that is gone on with becomes RUNNING again."""
        self._send({"kind": "end", "status": status, "time": int((time.time() if at is None else at) * 1000)})

    def _file(self, path: str, data: bytes) -> None:
        held = self._tracker.root / "scratch" / "tracking" / f"{os.getpid()}-{self._head['fingerprint']}" / path
        held.parent.mkdir(parents=True, exist_ok=True)
        held.write_bytes(data)
        try:
            if not self._direct({"kind": "file", "path": path}, held):
                kept = self._folder / "files" / path
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(held, kept)
                self._keep({"kind": "file", "path": path})
        finally:
            held.unlink()

    def _send(self, event: Event) -> None:
        if not self._direct(event, None):
            self._keep(event)

    def _direct(self, event: Event, file: Path | None) -> bool:
        # Once something is spooled, all that follows is too: the order stays, and sync sends the rest.
        if (self._folder / "events.jsonl").exists() and event["kind"] != "begin":
            return False

        def send() -> None:
            if self._sender is None:
                self._sender = Sender(self._tracker, self._head)
            self._sender.send(event, file)

        return self._tracker.attempt(send)

    def _keep(self, event: Event) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "run.json").write_text(json.dumps(self._head))
        with open(self._folder / "events.jsonl", "a") as file:
            file.write(json.dumps(event) + "\n")


def _events(path: Path) -> list[Event]:
    events = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # the last line of a process that was killed
            events.append(json.loads(line))
    return events


def _deliver(tracker: Tracker, head: Event, events: list[Event], folder: Path) -> None:
    sender = Sender(tracker, head)
    sender._had_it = True  # what was delivered before the connection broke must not come twice
    sender.send_metrics([e for e in events if e["kind"] == "metrics"])
    for event in events:
        if event["kind"] == "file":
            sender.send(event, folder / "files" / event["path"])
        elif event["kind"] in ("tags", "end"):
            sender.send(event)
