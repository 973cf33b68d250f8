"""What each node of a batch job does: the main one starts Ray's head and carries out the run, the others join and work.

The nodes meet in the store: the head writes its address and a token of its own making beside the submission, one file a job and
attempt, and takes it away at the end, which ends the others. So Ray's token is never in a job's definition, environment or log.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.batch import FOLDER, Submission
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.surroundings import shorten_temporary
from tokenloom.tasks.store.storage import Storage

JOIN_TIMEOUT = 900.0  # seconds in which all nodes have to be there: machines start one by one


@dataclass(frozen=True)
class Place:
    """Which node this is, by the variables that AWS Batch sets (outside of a multi-node job: the only one)."""

    index: int = 0
    main: int = 0
    nodes: int = 1
    main_address: str | None = None
    job: str = "local"
    attempt: str = "1"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """From the environment.

        Raises:
            ConfigError: a variable that is no number.
        """
        batch = {name.removeprefix("AWS_BATCH_JOB_"): value for name, value in environment.items() if name.startswith("AWS_BATCH_JOB_")}
        try:
            return cls(
                int(batch.get("NODE_INDEX", "0")),
                int(batch.get("MAIN_NODE_INDEX", "0")),
                int(batch.get("NUM_NODES", "1")),
                batch.get("MAIN_NODE_PRIVATE_IPV4_ADDRESS"),
                batch.get("ID", "local").partition("#")[0],  # JOB#NODE in a multi-node job
                batch.get("ATTEMPT", "1"),
            )
        except ValueError as error:
            raise ConfigError(f"AWS_BATCH_JOB_*: {error}") from error

    @property
    def first(self) -> bool:
        """Whether this is the main node."""
        return self.index == self.main

    @property
    def meeting(self) -> str:
        """Path in the store of the file that the nodes of this attempt meet at."""
        return f"{FOLDER}/meetings/{self.job}-{self.attempt}.json"


def work(uri: str, root: Path, options: Sequence[str] = ()) -> int:
    """Carry out this node's part of a submission, with more options of ``tokenloom run``; its exit code, or 0 where it is not run.

    Raises:
        ConfigError: no such submission.
        StepError: Ray does not start, or nodes that do not come.
    """
    submission, place = Submission.read(uri), Place.of(os.environ)
    if place.nodes == 1:
        return _run(submission, root, submission.cluster, options)
    os.environ |= {"RAY_AUTH_MODE": "token", "TOKENLOOM_NODE_ROOT": str(root)}
    storage = Storage(submission.store)
    return _main(submission, place, storage, root, options) if place.first else _join(place, storage, root)


def _main(submission: Submission, place: Place, storage: Storage, root: Path, options: Sequence[str]) -> int:
    from tokenloom.configs.schema import ClusterConfig
    from tokenloom.flows.prefect_api import free_port
    from tokenloom.tasks.runtime.cluster import session

    address = f"{place.main_address or own_address()}:{free_port()}"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    cluster = submission.cluster | {"address": address}
    with _ray(["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false"], address, root) as head:
        _until(lambda: _answers(address), head, "Ray's head does not answer")
        storage.write(place.meeting, json.dumps({"address": address, "token": os.environ["RAY_AUTH_TOKEN"]}).encode())
        try:
            with session(ClusterConfig.model_validate(cluster), root) as current:
                ray = current.ray
                _until(lambda: sum(node["Alive"] for node in ray.nodes()) >= place.nodes, head, f"{place.nodes} nodes are not there")
                return _run(submission, root, cluster, options)
        finally:
            storage.delete(place.meeting)  # the others end when it is gone


def _join(place: Place, storage: Storage, root: Path) -> int:
    _until(lambda: storage.exists(place.meeting), None, "the main node has not published its address")
    met = json.loads(storage.read(place.meeting))
    os.environ["RAY_AUTH_TOKEN"] = met["token"]
    with _ray([f"--address={met['address']}"], f"{own_address(met['address'])}:0", root) as joined:
        while joined.poll() is None and storage.exists(place.meeting):
            time.sleep(2.0)
        # A node that loses its raylet while the run goes on is a failure; Ray's workers are restarted elsewhere meanwhile.
        return 0 if not storage.exists(place.meeting) else joined.wait() or 1


@contextlib.contextmanager
def _ray(options: list[str], address: str, root: Path) -> Iterator[Any]:
    """A node of Ray for the length of a block, on ports that are free."""
    from tokenloom.flows.prefect_api import process

    (root / "logs").mkdir(parents=True, exist_ok=True)
    shorten_temporary()
    kinds = ("node-manager", "object-manager", "metrics-export", "runtime-env-agent", "dashboard-agent-grpc", "min-worker", "max-worker")
    ports = [f"--{kind}-port=0" for kind in kinds]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *ports, f"--node-ip-address={address.rpartition(':')[0]}"]
    with process([*command, "--block", "--disable-usage-stats"], str(root / "logs" / "ray-node.log")) as started:
        yield started


def _run(submission: Submission, root: Path, cluster: dict[str, Any], options: Sequence[str]) -> int:
    """``tokenloom run`` in this process: the same plan, messages and exit codes."""
    from tokenloom.flows.cli.main import code_of

    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.yaml") for name in ("run", "cluster")}
        files["run"].write_text(json.dumps(submission.run))  # JSON is YAML
        files["cluster"].write_text(json.dumps(cluster))
        where = ["--cluster", str(files["cluster"]), "--store", submission.store, "--root", str(root), *options]
        return code_of(["run", str(files["run"]), *where, *([] if os.environ.get("PREFECT_API_URL") else ["--no-prefect"])])


def own_address(towards: str = "192.0.2.1:9") -> str:
    """This machine's address on the way to another one (no packet is sent); loopback where there is no way."""
    import socket

    host, _, port = towards.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _answers(address: str) -> bool:
    import socket

    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False


def _until(true: Any, started: Any, otherwise: str) -> None:
    deadline = time.monotonic() + JOIN_TIMEOUT
    while not true():
        if started is not None and started.poll() is not None:
            raise StepError(f"{otherwise}: it ended with code {started.returncode}; see logs/ray-node.log under the root")
        if time.monotonic() > deadline:
            raise StepError(f"{otherwise} after {JOIN_TIMEOUT:.0f} s")
        time.sleep(0.5)
