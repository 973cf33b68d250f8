"""The only door to Ray: one lazy session that serves every step of a run.

``with session(cluster, root) as current: ray = current.ray`` starts Ray on the first use of ``.ray``.  Sessions nest: an
inner one joins the outer one, and only the outermost shuts Ray down, if it was the one that started it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenloom.configs.schema import ClusterConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.surroundings import neutral, settle, shorten_temporary

log = logging.getLogger(__name__)

#: Environment that Ray reads at import and at start; the person's own values win.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 s makes every report and the end of a run slow
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_enable_open_telemetry": "0",
}

#: What is shipped to a cluster's nodes.
PACKAGES = ("configs", "flows", "models", "tasks")

_current: Session | None = None


class Session:
    """A Ray runtime that starts at its first use."""

    def __init__(self, cluster: ClusterConfig, root: Path) -> None:
        self.cluster, self.root = cluster, Path(root).absolute()
        self.started = False  # by us: somebody else's runtime is never shut down
        self.dashboard = True  # whether the state of Ray's actors can be queried, as far as is known

    @property
    def ray(self) -> Any:
        """The ``ray`` module, initialised."""
        prepare_environment(self.cluster)
        import ray

        if not ray.is_initialized():
            self.dashboard = _start(ray, self.cluster, self.root)
            self.started = True
        return ray

    def close(self) -> None:
        """Shut down what this session started."""
        if self.started:
            import ray

            ray.shutdown()
            self.started = False


@contextlib.contextmanager
def session(cluster: ClusterConfig, root: Path | str) -> Iterator[Session]:
    """The current Ray session, or a new one that ends with the block."""
    global _current
    if _current is not None:
        yield _current
        return
    _current = Session(cluster, Path(root))
    try:
        yield _current
    finally:
        ending, _current = _current, None
        ending.close()


def shutdown() -> None:
    """End the current session's Ray runtime now (it starts again on the next use)."""
    if _current is not None:
        _current.close()


def cpus(cluster: ClusterConfig) -> int:
    """Logical CPUs of a local runtime: every worker fits beside one actor of another step, also on a small machine."""
    return max(os.cpu_count() or 1, cluster.execution.workers + 1, cluster.extract_actors + 1, (cluster.ingest_actors or 0) + 1)


def gpus(cluster: ClusterConfig) -> tuple[float, int | None]:
    """GPUs that a run asks for at a time, and those that this machine has (None where the run works elsewhere, or asks for none)."""
    processes = max(cluster.execution.workers, cluster.extract_actors)
    wanted = processes * cluster.gpus_per_worker or float(cluster.execution.device == "cuda")
    if not wanted or cluster.address != "local":
        return wanted, None
    import torch

    return wanted, torch.cuda.device_count()


def check_room(ray: Any, cluster: ClusterConfig, processes: int) -> None:
    """See that so many processes find their CPUs and GPUs; a cluster may grow, so there it is a warning.

    Raises:
        ConfigError: this machine has fewer GPUs.
    """
    have, gpus = ray.cluster_resources(), processes * cluster.gpus_per_worker
    if gpus <= have.get("GPU", 0) and processes <= have.get("CPU", 0):
        return
    wanted = f"{processes} processes want {processes} CPUs and {gpus:g} GPUs"
    there = f"{have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
    if cluster.address == "local":
        raise ConfigError(f"cluster.gpus_per_worker={cluster.gpus_per_worker:g}: {wanted}, this machine has {there}: lower one of them")
    log.warning("%s, the cluster has %s now: they wait for more nodes", wanted, there)


def runtime_env(cluster: ClusterConfig, folder: Path) -> dict[str, Any]:
    """The code that a remote cluster's workers need, from a checkout or an installation; empty on this machine.

    Secrets never go this way: Ray logs the runtime environment. Nodes bring their own credentials.

    Args:
        folder: an empty one, in which the code is put together as the package ``tokenloom``; Ray takes it from there.
    """
    if not cluster.ship_code:
        return {}
    above, package = Path(__file__).resolve().parents[2], folder / "tokenloom"
    for name in PACKAGES:
        shutil.copytree(above / name, package / name, ignore=shutil.ignore_patterns("__pycache__"))
    return {"py_modules": [str(package)]}


def worker_root(cluster: ClusterConfig, root: Path) -> str:
    """The root folder that a worker is given: this machine's, or nothing where a node has its own."""
    return str(root) if cluster.address == "local" else ""


def node_root(given: str) -> Path:
    """In a worker: the folder for caches and scratch files, ``TOKENLOOM_NODE_ROOT`` of the node unless one is given."""
    own = Path(tempfile.gettempdir()) / f"tokenloom-{os.getuid()}"
    return Path(given or os.environ.get("TOKENLOOM_NODE_ROOT") or own)


def prepare_environment(cluster: ClusterConfig) -> None:
    """Set what Ray reads from the environment, before it is imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if cluster.address == "local":
        # A private runtime on loopback needs no token, and a token file would turn authentication on for others on this machine.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _start(ray: Any, cluster: ClusterConfig, root: Path) -> bool:
    """Start Ray or join a cluster; whether it has a dashboard.

    Raises:
        StepError: it does not start, or there is no cluster.
    """
    logs = root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    settle()
    shorten_temporary()
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if cluster.address == "local":
        given |= {"address": "local", "num_cpus": cpus(cluster), "include_dashboard": False, "object_store_memory": 256 << 20}
    else:
        given["address"] = cluster.address
    try:
        with _signals_kept(), neutral(root), tempfile.TemporaryDirectory() as code:
            if environment := runtime_env(cluster, Path(code)):
                given["runtime_env"] = environment
            context = ray.init(**given)
    except Exception as error:
        ray.shutdown()
        what = "Ray did not start on this machine" if cluster.address == "local" else f"no Ray cluster at address={cluster.address}"
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise StepError(f"{what}: {reason} Ray's logs: {_ray_logs()}; the same command goes on") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    if cluster.address == "local":
        _link(logs / "ray", Path(context.address_info["session_dir"]) / "logs")
    return bool(context.dashboard_url)


def _ray_logs() -> str:
    above = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return f"{above}/ray/session_latest/logs"


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Give the handlers back that ``ray.init`` replaces: a flow must see SIGTERM itself to end cleanly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _link(link: Path, target: Path) -> None:
    """Point ``logs/ray`` at Ray's own log folder (its sockets need a short path, so it cannot live under the root)."""
    with contextlib.suppress(OSError):
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(target)
