"""Faults in the whole chain as a person runs it: the command line, Prefect, Ray Train, Ray actors, MLflow, in processes of their own.

Digits: ingest, tokenizer, extraction, features, generator, evaluation, registration.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.faults import short
from benchmarks.faults.judge import differing, outcome, resumed_early, rewritten
from benchmarks.faults.place import Place, free_port
from benchmarks.faults.trials import ENDED, Attempt, Result, category, flip

MARK = "TOKENLOOM_KILL_MARK"
LONGEST = 420.0  # seconds after which a run hangs
DISK = 96 << 20  # bytes of the disk that is filled
PATIENCE = 20.0  # seconds
LINES = 3  # of a clear message, at most
NAME, STEPS = "whole", 8


def marked(mark: str) -> list[psutil.Process]:
    """All processes of a run, daemons of Ray included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> int:
    """SIGKILL; how many there were."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(processes)


def kill_tree(mark: str) -> int:
    """SIGKILL whatever belongs to a run, until nothing is left."""
    killed = 0
    for _ in range(5):
        if not (found := marked(mark)):
            break
        killed += kill(found)
        time.sleep(0.2)
    return killed


def _is_worker(process: psutil.Process) -> bool:
    title = " ".join(process.cmdline())
    return title.startswith("ray::") and any(name in title for name in ("Worker", "Encoder", "SamplingActor"))


#: Kind of kill to the processes that it hits.
VICTIMS: dict[str, Callable[[psutil.Process], bool]] = {
    "kill driver": lambda process: "tokenloom.flows.cli.main" in " ".join(process.cmdline()),
    "kill tree": lambda process: True,
    "kill worker": _is_worker,
    "kill raylet": lambda process: process.name() == "raylet",
}


class Run:
    """One command in a session of its own; all its processes carry a mark."""

    def __init__(self, place: Place, arguments: list[str], mark: str, environment: dict[str, str]) -> None:
        self.mark, self.log = mark, place.folder / "log"
        self.began = time.monotonic()
        here = Path(__file__).resolve().parent.parent.parent
        given = (
            os.environ | {"PYTHONPATH": str(here), "TOKENLOOM_STORE_PATIENCE": str(PATIENCE), MARK: mark} | place.environment | environment
        )
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tokenloom.flows.cli.main", *arguments],
                env=given,
                cwd=here,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """Exit code, None while it runs on after so many seconds."""
        try:
            return self.process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return None

    def ending(self) -> str:
        """done, error (a message of the command), killed, crashed or hung; nothing of the run is left."""
        code = self.wait(LONGEST)
        kill_tree(self.mark)
        if code is None:
            self.process.wait()
            return "hung"
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return "killed"
        said = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("tokenloom: ")]
        if code and (not 0 < len(said) <= LINES or any("this is unexpected" in line for line in said)):
            return "crashed"
        return "done" if code == 0 else "error"


class Tracking:
    """An MLflow server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", str(self.folder / "artifacts")]
        with open(self.folder / "log", "a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.2)
        raise SystemExit("the tracking server does not start")

    def kill(self) -> None:
        """SIGKILL, its workers too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def steps(self, metric: str) -> list[int]:
        """Steps of a metric over all runs."""
        found: list[int] = []
        for experiment in self._ask("experiments/search", {"max_results": 100}).get("experiments", []):
            runs = self._ask("runs/search", {"experiment_ids": [experiment["experiment_id"]], "max_results": 100}).get("runs", [])
            for run in runs:
                address = f"{self.uri}/api/2.0/mlflow/metrics/get-history?run_id={run['info']['run_id']}&metric_key={metric}"
                with urllib.request.urlopen(address, timeout=10) as answer:
                    found += [int(point["step"]) for point in json.load(answer).get("metrics", [])]
        return sorted(found)

    def _ask(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.uri}/api/2.0/mlflow/{what}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@dataclass(frozen=True)
class Cost:
    """Seconds of an undisturbed run, of the same command again, and of what its two training steps took beside their training."""

    where: str
    undisturbed: float
    again: float
    first: float
    second: float
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))

    def row(self) -> dict[str, Any]:
        """A row of the results that is no fault."""
        return {"level": "cost", **asdict(self)}


def orchestration(files: dict[str, bytes], kind: str) -> float:
    """Seconds of a training step that were no training: workers, lease, checks, tracking, the record; Ray's start, in the first one."""
    record = next(json.loads(data) for path, data in files.items() if path.startswith(f"{kind}/") and path.endswith("/record.json"))
    return round(record["seconds"] - record["metrics"]["train_seconds"], 1)


def repeated(log: str) -> list[str]:
    """Artifacts that the runs of a log say to have made more than once."""
    made = Counter(re.findall(r"^\w+: ran in .*?(\w+/\S+)$", log, re.MULTILINE))
    return sorted(f"artifact {name}" for name, count in made.items() if count > 1)


def versions(database: Path) -> int:
    """Versions of models in a tracking database."""
    if not database.exists():
        return 0
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("select count(*) from model_versions").fetchone()[0])


class Whole:
    """Runs trials of the whole chain below a folder; ``costs`` are of the undisturbed runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        train = {"steps": STEPS, "batch": 8, "log_every": 1, "validate_every": 4, "checkpoint_every": 2}
        vq = {"codes": 8, "dim": 4, "channels": 8, "multipliers": [1, 2], "patch": 2}
        run = {
            "name": NAME,
            "data": {"source": "digits", "size": 8, "fit": "resize", "limit": 160, "validation": 0.25, "shard_rows": 32},
            "tokenizer": {"recipe": "vq", "args": vq, "train": train},
            "generator": {"recipe": "raster", "args": {"depth": 1, "width": 16, "heads": 2}, "train": train},
            "evaluate": {"samples": 16, "shard": 8, "metrics": ["nll", "fd", "recognition"]},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(run))
        (folder / "cluster.yaml").write_text(yaml.safe_dump({"execution": {"workers": 1, "device": "cpu"}, "extract_actors": 1}))
        self._wanted: dict[str, tuple[dict[str, str], float]] = {}
        self._number = 0
        self.costs: list[Cost] = []

    def start(self, place: Place, root: str = "root", environment: dict[str, str] | None = None) -> Run:
        """Start the run."""
        self._number += 1
        arguments = ["run", str(self.folder / "run.yaml"), "--cluster", str(self.folder / "cluster.yaml")]
        arguments += ["--root", str(place.root(root)), "--store", place.uri]
        return Run(place, arguments, f"{os.getpid()}-{self._number}", environment or {})

    def place(self, where: str, small: int = 0) -> Place:
        """A fresh place."""
        self._number += 1
        return Place(self.folder / f"place-{self._number}", where, small)

    def undisturbed(self, where: str) -> tuple[dict[str, str], float]:
        """Outcome and seconds of a run without a fault."""
        if where not in self._wanted:
            place = self.place(where)
            try:
                run = self.start(place)
                if run.ending() != "done":
                    raise SystemExit(f"the undisturbed run fails: {run.log.read_text()[-3000:]}")
                seconds = time.monotonic() - run.began
                again = self.start(place)
                again.ending()
                files = place.files()
                spent = [orchestration(files, kind) for kind in ("tokenizer", "generator")]
                self.costs.append(Cost(where, round(seconds, 1), round(time.monotonic() - again.began, 1), *spent))
                print(self.costs[-1], flush=True)
                self._wanted[where] = outcome(files), seconds
            finally:
                place.close()
        return self._wanted[where]

    def run(self, kind: str, where: str, seed: int) -> Result:
        """One fault."""
        draw = random.Random(f"{kind} {where} {seed}")
        result = Result(kind, where, seed, "whole")
        wanted, duration = self.undisturbed(where)
        began = time.monotonic()
        place = self.place(where, DISK if kind == "disk full" else 0)
        tracking: Tracking | None = None
        environment: dict[str, str] = {}
        try:
            if kind in ("tracking killed", "twice"):  # two roots share a server, as two machines would
                tracking = Tracking(place.folder / "tracking")
                tracking.start()
                environment = {"MLFLOW_TRACKING_URI": tracking.uri}
            moment = draw.uniform(0, duration)
            result.detail = f"at {moment:.1f} s"
            first = self.start(place, "one" if kind == "twice" else "root", environment)
            second = self.start(place, "two", environment) if kind == "twice" else None
            if first.wait(moment) is None:
                self._fault(kind, place, draw, first, result, tracking)
            else:
                result.detail += ENDED
            if second is not None:
                result.first = second.ending()
                result.detail += f", the second one ended {time.monotonic() - first.began - moment:.1f} s later"
                result.runs += 1
            ending = first.ending()
            result.first = ending if result.first in ("", "done") else result.first
            result.runs += 1
            before = place.files()
            if kind == "flip":
                self._flip(place, draw, result)
            if kind == "tracking killed":
                assert tracking is not None
                tracking.start()
            self._finish(place, result, environment)
            after = place.files()
            result.lost += differing(wanted, outcome(after))
            if kind != "flip":
                said = (place.folder / "log").read_text(errors="replace")
                result.twice += rewritten(before, after) + resumed_early(before, after) + repeated(said)
            database = (tracking.folder if tracking is not None else place.root()) / "mlflow.db"
            if (count := versions(database)) != 1:
                result.lost.append(f"the registry has {count} versions")
            if tracking is not None and (steps := tracking.steps("loss")) != sorted(2 * list(range(1, STEPS + 1))):
                result.lost.append(f"metrics: steps {steps}")
            if not result.ok:
                result.detail += " | " + (place.folder / "log").read_text(errors="replace")[-1500:]
        finally:
            if tracking is not None:
                tracking.kill()
            place.close()
        result.seconds = round(time.monotonic() - began, 1)
        return result

    def _fault(self, kind: str, place: Place, draw: random.Random, run: Run, result: Result, tracking: Tracking | None) -> None:
        window = draw.uniform(0.5, 8.0)
        if kind in VICTIMS:
            while run.wait(0.05) is None:  # until there is one
                victims = []
                for process in marked(run.mark):
                    with contextlib.suppress(psutil.Error):
                        if VICTIMS[kind](process):
                            victims.append(process)
                if victims:
                    result.detail += f" (in truth {time.monotonic() - run.began:.1f} s), {kill(victims)} processes"
                    break
        elif kind == "disk full":
            ballast = place.fill()
            run.wait(LONGEST)
            ballast.unlink()
        elif kind == "tracking killed":
            assert tracking is not None
            tracking.kill()
            run.wait(LONGEST)
        elif kind == "twice":
            if draw.random() < 0.5:
                kill_tree(run.mark)
                result.detail += ", first one killed"
        elif kind == "S3 killed":
            assert place.server is not None
            place.server.kill()
            run.wait(window)
            place.server.start()
            result.detail += f" for {window:.1f} s"
        elif kind == "5xx":
            assert place.server is not None
            fault = place.server.folder.with_name(place.server.folder.name + ".fault.json")
            fault.write_text(json.dumps({"status": draw.choice([500, 503]), "share": draw.choice([0.3, 1.0])}))
            run.wait(window)
            fault.unlink()
            result.detail += f" for {window:.1f} s"
        elif kind in ("cut", "held"):
            assert place.proxy is not None
            with place.proxy.during(kind):
                run.wait(window)
            result.detail += f" for {window:.1f} s"

    def _flip(self, place: Place, draw: random.Random, result: Result) -> None:
        there = {path: data for path, data in place.files().items() if data and category(path)}
        wanted = draw.choice(sorted({category(path) for path in there}))
        path = draw.choice(sorted(p for p in there if category(p) == wanted))
        flipped, at = flip(there[path], draw)
        place.put(path, flipped)
        result.detail = f"{wanted}: byte {at} of {path}"
        if path not in self._verify(place):
            result.unnamed.append(path)

    def _finish(self, place: Place, result: Result, environment: dict[str, str]) -> None:
        """The same command again: it must end, and leave a whole store."""
        run = self.start(place, "root", environment)
        ending = run.ending()
        result.runs += 1
        said = self._verify(place) if ending == "done" else ""
        if ending != "done" or said:
            result.problem = f"the next run ended {ending}; {said}"

    def _verify(self, place: Place) -> str:
        attempt = Attempt(lambda: short.verify(place.uri, place.root("doctor")), place.folder / "verify", place.environment)
        return "" if attempt.wait(LONGEST) == short.DONE else attempt.log.read_text()[-600:]


def kinds() -> list[tuple[str, str]]:
    """All kinds of trials of the whole chain with the places that they have, the most different ones first."""
    local = ["kill worker", "tracking killed", "disk full", "kill raylet", "kill driver", "flip", "kill tree", "twice"]
    s3 = ["S3 killed", "kill tree", "twice", "cut", "kill worker", "5xx", "kill driver", "held", "kill raylet"]
    pairs = [pair for a, b in itertools.zip_longest(local, s3) for pair in ((a, "local"), (b, "s3"))]
    return [(kind, where) for kind, where in pairs if kind is not None]
