"""The Prefect API as a run needs it: is it there, and a deployment that retrains on a schedule."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloom.flows.guard import end_with_parent
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.surroundings import neutral, neutral_folder, proxied

if TYPE_CHECKING:
    from tokenloom.configs.schema import RunConfig
    from tokenloom.flows.workspace import Workspace

log = logging.getLogger(__name__)


def reachable(warn: Callable[[str], None], root: Path) -> bool:
    """Whether Prefect's API answers (the configured one, else one that is started for this process); warns once if not."""
    try:
        from prefect.client.orchestration import get_client

        with neutral(root), get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
            if problem is not None:
                raise problem
            client.read_flows(limit=1)
        return True
    except Exception as error:
        log.warning("Prefect API", exc_info=True)
        text = str(error).strip().splitlines()
        via = proxied(os.environ.get("PREFECT_API_URL", ""))
        reason = text[0] if text else type(error).__name__
        warn(f"Prefect's API cannot be used ({reason}{via}); the run goes on without it (--no-prefect).")
        return False


def free_port(preferred: int | None = None) -> int:
    """A port on loopback that nobody listens on: the preferred one if it is free."""
    for port in (preferred, 0) if preferred else (0,):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise StepError("no free port on 127.0.0.1")


def port(option: str, given: int | None, preferred: int) -> int:
    """The requested port, or a free one.

    Raises:
        ConfigError: the requested port is in use.
    """
    found = free_port(given or preferred)
    if given and found != given:
        raise ConfigError(f"{option} {given}: port {given} of 127.0.0.1 is in use; stop what listens there or choose another port")
    return found


def server_command(number: int) -> list[str]:
    """Command that serves Prefect's API and UI on loopback."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(number)]


@contextlib.contextmanager
def process(command: list[str], log_file: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A server process for the length of a block; it leads a group of its own, which is ended with the block.

    It stands in an empty folder beside its log and imports nothing from there.
    """
    with open(log_file, "ab") as out:
        started = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | (environment or {}),
            cwd=neutral_folder(Path(log_file).absolute().parent.parent),
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # nothing is left behind when this process is killed
        )
    try:
        yield started
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(started.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(10)
                break


def wait_for(url: str, started: subprocess.Popen[bytes], what: str, log_file: str, seconds: float = 120) -> None:
    """Wait until a server answers.

    Raises:
        StepError: it ended or does not answer in time; names its log.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if started.poll() is not None:
            raise StepError(f"{what} ended with code {started.returncode}; see {log_file}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise StepError(f"{what} does not answer at {url} after {seconds:.0f} s; see {log_file}")


#: The automation by its name: made once, then kept.
HEARTBEAT = "tokenloom: a flow run whose heartbeat stopped has crashed"
#: The flows that it judges (``flows/pipeline.py``).
FLOWS = ("tokenloom", "tokenloom-retrain")
#: Seconds between two heartbeats of a flow run: the least that Prefect takes.
HEARTBEAT_SECONDS = 30
#: Heartbeats of a flow run that may be missed.
MISSED = 3


def watch_heartbeats() -> bool:
    """Have the Prefect server call a flow run crashed when its heartbeat stops; else a killed one is shown as running for ever
    and keeps the only place of its deployment.

    Only runs of our flows are judged: others on the same server may have a slower heart.

    Returns:
        Whether the automation was made now (false: it was there).
    """
    from datetime import timedelta

    from prefect.automations import Automation, EventTrigger, Posture
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.server.schemas.states import StateType

    automations: Any = Automation
    with contextlib.suppress(ValueError):
        automations.read(name=HEARTBEAT)
        return False
    period = int(os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY") or HEARTBEAT_SECONDS)
    automations(
        name=HEARTBEAT,
        description=f"No heartbeat for {MISSED * period} s: killed, or its machine is gone.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={f"prefect.flow-run.{what}" for what in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": [*FLOWS]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED * period),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message="its heartbeat stopped")],
    ).create()
    return True


def serve(config: RunConfig, work: Workspace, cron: str) -> None:
    """Serve the pipeline as a deployment that runs on a schedule, until the process is stopped.

    Raises:
        ConfigError: not a cron expression.
    """
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        raise ConfigError(f"--cron {cron!r}: not a cron expression (minute hour day month weekday)") from error
    with contextlib.ExitStack() as held:
        if given := os.environ.get("PREFECT_API_URL"):
            _check_answers(given)
        else:
            number, log_file = free_port(4200), str(work.root / "logs" / "prefect-server.log")
            started = held.enter_context(process(server_command(number), log_file))
            wait_for(f"http://127.0.0.1:{number}/api/health", started, "Prefect server", log_file)
            os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{number}/api"
            print(f"Prefect UI: http://127.0.0.1:{number}", file=sys.stderr)
        from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
        from prefect.context import refresh_global_settings_context
        from prefect.deployments.runner import EntrypointType

        from tokenloom.flows.pipeline import pipeline

        os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_SECONDS))  # the runs are our children
        refresh_global_settings_context()
        watch_heartbeats()
        print(f"Serving deployment tokenloom/{config.name}, cron {cron!r}. Ctrl-C stops it.", file=sys.stderr)
        pipeline.serve(
            name=config.name,
            cron=cron,
            limit=1,
            # Also where it is served twice; a run that dies frees its place by the automation.
            global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
            pause_on_shutdown=False,
            print_starting_message=False,
            entrypoint_type=EntrypointType.MODULE_PATH,
            parameters={
                "config": config.model_dump(mode="json", by_alias=True),
                "cluster": work.cluster.model_dump(mode="json"),
                "root": str(work.root),
                "store": work.store_uri,
            },
        )


def _check_answers(api: str) -> None:
    """See that something answers at ``PREFECT_API_URL``; whether it wants a login is Prefect's affair.

    Raises:
        ConfigError: nothing does.
    """
    try:
        urllib.request.urlopen(f"{api.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"PREFECT_API_URL={api!r}: no answer ({reason}{proxied(api)}); start that server, or unset the variable and one is started"
        ) from error


def main() -> None:
    """``python -m tokenloom.flows.prefect_api``: prepare the server at ``PREFECT_API_URL`` for deployments (``infra/prefect.yaml``)."""
    print(f"{HEARTBEAT!r}: {'made' if watch_heartbeats() else 'is there already'}")


if __name__ == "__main__":
    main()
