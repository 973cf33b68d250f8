"""A Ray cluster of several nodes on this machine: raylets that share nothing but an object store on loopback.

Each node has its own resources, scratch folder and environment, as a machine of its own would; code reaches it only as the
driver ships it. ``python tests/support/nodes.py 3 COMMAND…`` runs a command beside such a cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_OWN = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_open_telemetry": "0", "GLOO_SOCKET_IFNAME": "lo"}


@dataclass
class Node:
    """One raylet (the first with the head's services) and its own folder for caches and scratch files."""

    name: str
    root: Path
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End the node at once, as a machine that loses power: all processes that carry its mark, and no others."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)

    def processes(self) -> list[psutil.Process]:
        """Raylet, workers and helpers of this node (they keep its environment, whoever started them)."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.environ().get("TOKENLOOM_NODE_ROOT") == str(self.root / "own"):
                    found.append(process)
        return found


@dataclass
class Nodes:
    """The running cluster: ``address`` for ``ClusterConfig``, and its nodes by position, head first."""

    address: str
    home: Path
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)

    def start(self, cpus: int, tries: int = 3) -> Node:
        """Add a node with so many CPUs, and wait until it runs.

        Raises:
            RuntimeError: it does not start; its log is in the message.
        """
        name = f"node{len(self.nodes)}"
        root = self.home / name
        root.mkdir(exist_ok=True)
        head = not self.nodes
        where = ["--head", f"--port={self.address.rpartition(':')[2]}"] if head else [f"--address={self.address}"]
        ports = [
            f"--{kind}-port=0" for kind in ("node-manager", "object-manager", "metrics-export", "runtime-env-agent", "dashboard-agent-grpc")
        ]
        options = [*where, *ports, "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", f'--resources={{"{name}": 1}}', "--block"]
        options += ["--object-store-memory=100000000", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
        options += ["--include-dashboard=false", f"--temp-dir={self.home / 'ray'}"] if head else []
        environment = self.environment | {"TOKENLOOM_NODE_ROOT": str(root / "own")}
        with open(root / "log.txt", "wb") as log:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=root, start_new_session=True)
        node = Node(name, root, process)
        self.nodes.append(node)
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in (said := (root / "log.txt").read_bytes()):
            if process.poll() is not None or time.monotonic() > deadline:
                node.kill()
                self.nodes.pop()
                if tries > 1 and b"timed out during startup" in said:  # it gives up after 30 s, which a busy machine may need
                    return self.start(cpus, tries - 1)
                raise RuntimeError(f"{name} does not start: {said.decode()[-2000:]}")
            time.sleep(0.1)
        return node


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def cluster(cpus: Sequence[int], environment: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """A cluster of ``len(cpus)`` nodes with so many CPUs each, until the block ends.

    Args:
        environment: what the nodes have in their environment besides this process's own (credentials of the store).

    Raises:
        RuntimeError: a node does not start; its log is in the message.
    """
    home = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))  # Ray's sockets need a short path
    nodes = Nodes(f"127.0.0.1:{free_port()}", home, {**os.environ, **_OWN, **(environment or {})})
    nodes.environment.pop("PYTHONPATH", None)
    try:
        for number in cpus:
            nodes.start(number)
        yield nodes
    finally:
        for node in reversed(nodes.nodes):
            node.kill()
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def bucket(name: str = "store-bucket") -> Iterator[dict[str, str]]:
    """An empty bucket on an S3 server of a process of its own; the environment with which it is reached."""
    import boto3

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the S3 server does not start")
            time.sleep(0.1)
        client = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        yield environment
    finally:
        process.kill()
        process.wait(30)


if __name__ == "__main__":
    with bucket() as keys, cluster([1] * int(sys.argv[1]), keys) as started:
        print(f"address {started.address}, nodes' folders in {started.home}, store s3://store-bucket", file=sys.stderr)
        given = {**os.environ, **_OWN, **keys, "CLUSTER_ADDRESS": started.address}
        running = subprocess.Popen(sys.argv[2:], env=given)
        signal.signal(signal.SIGTERM, lambda number, frame: running.terminate())
        sys.exit(running.wait())
