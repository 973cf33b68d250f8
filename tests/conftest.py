"""Shared fixtures: a quiet offline environment, a store in a temporary folder, tiny image rows, one local Ray."""

from __future__ import annotations

import os

# Before anything imports torch, ray, prefect or mlflow: they read their environment once.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(_name, _value)

import time  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from image_rows import write_image_rows  # noqa: E402

from tokenloom.tasks.data.loader import Rows  # noqa: E402
from tokenloom.tasks.store.artifacts import Store  # noqa: E402

torch.set_num_threads(1)


#: Beginnings of the variables that are put back after each test.
OURS = ("MLFLOW_", "PREFECT_", "TOKENLOOM_", "PYTHON", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """No test leaves addresses, proxies or paths behind: MLflow and our own command line set them for the whole process."""
    before = dict(os.environ)
    yield
    set_by_us = ("MLFLOW_", "PREFECT_", "TOKENLOOM_", "PYTHON", "RAY_TMPDIR", "TMPDIR", "no_proxy", "NO_PROXY")
    for name in [n for n in os.environ if n.startswith(set_by_us)]:
        if name in before:
            os.environ[name] = before[name]
        else:
            del os.environ[name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A fresh local root folder (databases, caches, logs)."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def store(root: Path) -> Store:
    """An empty store under the root."""
    return Store(str(root / "store"), root)


@pytest.fixture
def image_rows(store: Store) -> Callable[..., Rows]:
    """``image_rows(rows, split="train", size=4, classes=4)`` writes a shard into the store."""

    def write(rows: int, **options: Any) -> Rows:
        return write_image_rows(store, rows, **options)

    return write


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of a bucket, empty at first, of a server in this process."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="store-bucket")
        yield "s3://store-bucket"
    server.stop()


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One local Ray runtime for all tests marked ``ray``; steps find it and leave it running."""
    from tokenloom.configs.schema import ClusterConfig
    from tokenloom.models.core.settings import ExecutionSettings
    from tokenloom.tasks.runtime.cluster import session

    with session(ClusterConfig(execution=ExecutionSettings(workers=3)), tmp_path_factory.mktemp("ray-root")) as current:
        yield current.ray


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with real servers and clusters first, so that no worker is left alone with one at the end (with --no-loadscope-reorder)."""
    minutes = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in minutes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note the processor time of a contract test: how long it takes where nothing else runs."""
    began = time.process_time()
    yield
    if item.path.name == "test_zoo.py":
        item.user_properties.append(("processor_seconds", time.process_time() - began))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The methods whose contract tests take longest together."""
    spent: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                spent[report.nodeid.partition("[")[2].rstrip("]")] += dict(report.user_properties).get("processor_seconds", 0.0)
    slowest = sorted(((seconds, name) for name, seconds in spent.items() if seconds), reverse=True)
    if len(slowest) > 1:
        terminalreporter.section("slowest methods: all contract tests together, processor time (aim: 1.5 s)")
        for seconds, name in slowest[:10]:
            terminalreporter.write_line(f"{seconds:6.2f}s {name}")
        terminalreporter.write_line(f"{sum(seconds for seconds, _ in slowest):6.2f}s {len(slowest)} methods")
