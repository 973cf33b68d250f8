"""Settings that Prefect and its friends read from the environment, put in place before they are imported."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path


def prepare(root: Path) -> None:
    """Quiet, local and offline by default; whatever the person has set stays.

    Prefect keeps its database under the root folder, as everything else does; a profile of one's own is still read.
    """
    with contextlib.suppress(RuntimeError):  # a user without a home
        profiles = Path.home() / ".prefect" / "profiles.toml"
        if "PREFECT_HOME" not in os.environ and profiles.is_file():
            os.environ.setdefault("PREFECT_PROFILES_PATH", str(profiles))
    for name, value in {
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_CLIENT_MAX_RETRIES": "3",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves a gigabyte of idle workers
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        os.environ.setdefault(name, value)


def log_to(root: Path) -> Path:
    """Send the log records of this process to a file under the root folder, if it can be written; returns it."""
    path = root / "logs" / "tokenloom.log"
    logging.raiseExceptions = False  # a log that cannot be written (a full disk) must not fill the screen
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:  # a root that can only be read, as `show` does; what has to write says so itself
        return path
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return path
