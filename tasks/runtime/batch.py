"""The only door to AWS Batch: a run as a job, on one machine or on several that form a Ray cluster.

What the job does is written into the store first, under ``submissions/`` and named by its content; the job itself carries
nothing but that address. A job's name is the run's name and fingerprint: one that is queued or runs already is found and shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.surroundings import proxied
from tokenloom.tasks.store.artifacts import canonical_json, sha256_of
from tokenloom.tasks.store.storage import Storage

#: States of a job that is not over.
LIVE = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
#: Come back: what a run that was stopped by SIGTERM ends with, its state saved (``tokenloom run``).
AGAIN = 75
FOLDER = "submissions"
#: Strategy for jobs without one: come back after a preemption or a lost machine, but never repeat a failure of our own.
RETRY = {
    "attempts": 10,
    "evaluateOnExit": [
        {"onExitCode": str(AGAIN), "action": "RETRY"},
        {"onStatusReason": "Host EC2*", "action": "RETRY"},
        {"onReason": "*", "action": "EXIT"},
    ],
}


@dataclass(frozen=True)
class Submission:
    """What the nodes of a job carry out: a run file, a cluster file and where artifacts are, as plain data."""

    run: dict[str, Any]
    cluster: dict[str, Any]
    store: str

    @property
    def path(self) -> str:
        """Where it is in the store: named by its content, so that submitting twice writes the same file."""
        return f"{FOLDER}/{self.run['name']}-{sha256_of(canonical_json(asdict(self)))[:12]}.json"

    @property
    def uri(self) -> str:
        """Its address, which is all that a job carries."""
        return Storage(self.store).uri(self.path)

    def write(self) -> None:
        """Put it into the store."""
        Storage(self.store).write(self.path, json.dumps(asdict(self), indent=1, sort_keys=True).encode())

    @classmethod
    def read(cls, uri: str) -> Submission:
        """Inverse of ``write``.

        Raises:
            ConfigError: there is no such file, or it is none of ours.
        """
        folder, _, name = uri.rpartition("/")
        try:
            return cls(**json.loads(Storage(folder).read(name)))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise ConfigError(f"{uri}: no submission: {str(error).splitlines()[0]}; `tokenloom submit` writes them") from error


@dataclass(frozen=True)
class Job:
    """A job of a queue: to be submitted, or found there."""

    name: str
    queue: str
    definition: str
    command: Sequence[str]
    nodes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ConfigError(f"--nodes {self.nodes}: must be at least 1")

    def request(self) -> dict[str, Any]:
        """The arguments of ``SubmitJob``: a container on one node, a multi-node parallel job on several."""
        container: dict[str, Any] = {"command": list(self.command)}
        if self.environment:
            container["environment"] = [{"name": name, "value": value} for name, value in sorted(self.environment.items())]
        job: dict[str, Any] = {"jobName": self.name, "jobQueue": self.queue, "jobDefinition": self.definition, "retryStrategy": RETRY}
        if self.nodes == 1:
            return job | {"containerOverrides": container}
        overrides = [{"targetNodes": "0:", "containerOverrides": container}]
        return job | {"nodeOverrides": {"numNodes": self.nodes, "nodePropertyOverrides": overrides}}


@dataclass(frozen=True)
class QueuedJob:
    """A job that the queue knows."""

    id: str
    name: str
    status: str
    submitted: bool  # by this call; false: it was there


def job_name(run: str, fingerprint: str) -> str:
    """Name of a run's job: at most 128 letters, digits, ``-`` and ``_``."""
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '-', run)}-{fingerprint}"


def submit(job: Job, submission: Submission, region: str | None = None) -> QueuedJob:
    """Submit a job, or find the live one of the same name.

    Raises:
        ConfigError: no such queue or definition, or a definition of another type.
        StepError: AWS cannot be reached or refuses.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        client = boto3.client("batch", region_name=region)
        if (found := _live(client, job)) is not None:
            return found
        submission.write()
        made = client.submit_job(**job.request())
        return QueuedJob(made["jobId"], job.name, LIVE[0], submitted=True)
    except (NoRegionError, NoCredentialsError) as error:
        raise ConfigError(f"AWS: {error}; set AWS_REGION (or --region) and credentials") from error
    except ClientError as error:
        problem = error.response.get("Error", {})
        text = f"AWS Batch, queue {job.queue!r}, job definition {job.definition!r}: {problem.get('Message', error)}"
        raise (ConfigError if problem.get("Code") == "ClientException" else StepError)(text) from error
    except BotoCoreError as error:
        raise StepError(f"AWS Batch cannot be reached: {error}{proxied('https://batch.amazonaws.com')}") from error


def _live(client: Any, job: Job) -> QueuedJob | None:
    """The job of this name that is not over; with a name filter all states are listed."""
    pages = client.get_paginator("list_jobs").paginate(jobQueue=job.queue, filters=[{"name": "JOB_NAME", "values": [job.name]}])
    for each in (one for page in pages for one in page["jobSummaryList"]):
        if each["jobName"] == job.name and each.get("status") in LIVE:
            return QueuedJob(each["jobId"], job.name, each["status"], submitted=False)
    return None
