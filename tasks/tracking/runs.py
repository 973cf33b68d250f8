"""What a tracked run says of its artifact, and its delivery to MLflow, each point once.

Part of ``tasks/tracking/tracker.py``, which is the door; nothing else imports this.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenloom.tasks.store.leases import file_lock
from tokenloom.tasks.store.records import StepSpec, code_commit

FINGERPRINT = "tokenloom.fingerprint"
#: MLflow's own tags: what an experiment is about, and the description that a page shows.
KIND, NOTE = "mlflow.experimentKind", "mlflow.note.content"
_LONGEST = 6000  # characters of a parameter's value that MLflow takes
_BATCH = 500  # metrics sent in one request
_TRIES = 3  # of a row that another process inserts at the same time

Event = dict[str, Any]


class Server(Protocol):
    """What a sender needs of the tracker (``tasks/tracking/tracker.py``)."""

    root: Path

    @property
    def client(self) -> Any:
        """MLflow's client."""

    def run_id(self, fingerprint: str) -> str | None:
        """The id of the run with this fingerprint, None if there is none."""

    def experiment_id(self, name: str | None = None) -> str:
        """The id of an experiment, which is made if need be."""


class Sender:
    """Delivers the events of one run to MLflow; raises when it is away."""

    def __init__(self, tracker: Server, head: Event) -> None:
        self._client = tracker.client
        found = tracker.run_id(head["fingerprint"])
        if found is None:
            with file_lock(tracker.root / "locks" / f"run-{head['fingerprint']}.lock", f"the run of {head['fingerprint']}"):
                found = tracker.run_id(head["fingerprint"])
                self._had_it = found is not None
                if found is None:
                    experiment = tracker.experiment_id(head["experiment"])
                    created = self._client.create_run(experiment, head.get("started"), tags=head["tags"], run_name=head["name"])
                    found = created.info.run_id
        else:
            self._had_it = True
        self.run_id: str = found
        self._known: dict[str, set[int]] = {}
        self._describe(head)

    def _describe(self, head: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        run = self._client.get_run(self.run_id)
        # Parameters are immutable: what an earlier attempt logged stays.
        fresh = [Param(k, v) for k, v in head["params"].items() if k not in run.data.params]
        for start in range(0, len(fresh), 100):
            self._client.log_batch(self.run_id, params=fresh[start : start + 100])
        have = {each.dataset.digest for each in (run.inputs.dataset_inputs if run.inputs else [])}
        inputs = []
        for role, item in head["inputs"].items():
            if item["fingerprint"] not in have:
                # Metadata only: the digest is the artifact's fingerprint, MLflow never reads the data.
                source = json.dumps({"tags": {"tokenloom.uri": item["uri"]}})
                dataset = Dataset(f"{item['kind']}/{item['name']}", item["fingerprint"], "code", source)
                inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", role)]))
        if inputs:
            self._link(inputs)

    def _link(self, inputs: list[Any]) -> None:
        """Name the datasets of the run.

        Two processes that begin at once both find a dataset missing and insert it: the database refuses one of them by its unique
        key, and that one finds the row when it does the same again.
        """
        for left in reversed(range(_TRIES)):
            try:
                return self._client.log_inputs(self.run_id, datasets=inputs)
            except Exception as error:  # MLflow passes the database's error on as text
                if not left or "unique constraint" not in str(error).lower():
                    raise

    def send(self, event: Event, file: Path | None = None) -> None:
        """Deliver one event."""
        kind = event["kind"]
        if kind == "metrics":
            self.send_metrics([event])
        elif kind == "file":
            assert file is not None
            self._client.log_artifact(self.run_id, str(file), str(Path(event["path"]).parent))
        elif kind == "tags":
            for key, value in event["values"].items():
                self._client.set_tag(self.run_id, key, value)
        elif kind == "end":
            self._client.set_terminated(self.run_id, event["status"], end_time=event["time"])
        elif kind == "begin" and self._had_it:
            self._client.update_run(self.run_id, status="RUNNING")

    def send_metrics(self, events: list[Event]) -> None:
        """Deliver the points that the run does not have yet."""
        from mlflow.entities import Metric

        points = []
        for event in events:
            for name, value in event["values"].items():
                steps = self._steps(name)
                if event["step"] not in steps:
                    steps.add(event["step"])
                    points.append(Metric(name, float(value), event["time"], event["step"]))
        for start in range(0, len(points), _BATCH):
            self._client.log_batch(self.run_id, metrics=points[start : start + _BATCH])

    def _steps(self, name: str) -> set[int]:
        if name not in self._known:
            history = self._client.get_metric_history(self.run_id, name) if self._had_it else []
            self._known[name] = {metric.step for metric in history}
        return self._known[name]


def describe(step: StepSpec, uri: str, experiment: str) -> Event:
    """What a run's page says of a step: name, parameters, lineage."""
    inputs = {role: {"kind": a.kind, "name": a.name, "fingerprint": a.fingerprint, "uri": a.uri} for role, a in step.inputs.items()}
    tags = {FINGERPRINT: step.fingerprint, "tokenloom.step": step.step, "tokenloom.kind": step.kind, "tokenloom.artifact": uri}
    tags |= {f"tokenloom.input.{role}": f"{a.kind}/{a.id}" for role, a in step.inputs.items()}
    tags |= {"mlflow.source.name": f"tokenloom run {step.name}", "mlflow.source.type": "LOCAL", "mlflow.user": user()}
    if (commit := code_commit()) is not None:
        tags["mlflow.source.git.commit"] = commit
    made_of = ", ".join(f"{role} `{a.kind}/{a.id}`" for role, a in step.inputs.items())
    tags[NOTE] = f"Step `{step.step}` of the run `{step.name}`: artifact `{step.kind}/{step.name}-{step.fingerprint}`" + (
        f", made from {made_of}." if made_of else "."
    )
    params = {name: str(value)[:_LONGEST] for name, value in flat(step.config)}
    name = f"{step.step}-{step.name}"
    return {
        "experiment": experiment,
        "kind": step.kind,
        "fingerprint": step.fingerprint,
        "name": name,
        "tags": tags,
        "params": params,
        "inputs": inputs,
    }


def user() -> str:
    """The user's name on this machine; ``unknown`` for an account without one, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings (type names of configs are left out, long lists are one value)."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{key}.")
        elif key != "type":
            yield f"{above}{key}", value
