"""Faults in the short pipeline (``short.py``): one trial is one fault at a random moment, then the same command until it is done.

Every trial is a function of its seed, but for what the machine's load does to the moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import short
from benchmarks.faults.judge import differing, kept, outcome, twice
from benchmarks.faults.place import Place

DISK = 24 << 20  # bytes of the disk that is filled
LONGEST = 180.0  # seconds after which an attempt hangs
ENDED = " (it had ended)"
STALE, BEAT = 3.0, 0.5  # seconds of a lease in the trials of two runs


class Attempt:
    """One run of the short pipeline in a forked process."""

    def __init__(self, call: Callable[[], int], log: Path, environment: dict[str, str]) -> None:
        self.log, self._code, self.began = log, None, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            code = short.CRASHED
            try:
                os.setsid()
                out = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
                os.dup2(out, 1)
                os.dup2(out, 2)
                os.environ |= environment
                code = call()
            finally:
                sys.stderr.flush()
                os._exit(code)

    _code: int | None

    def wait(self, seconds: float) -> int | None:
        """Exit code (negative: of a signal), None while it runs on after so many seconds."""
        deadline = time.monotonic() + seconds
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                break
            else:
                time.sleep(0.002)
        return self._code

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.wait(0) is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10)


@dataclass
class Result:
    """What one fault did; ``first`` is how the run that it hit ended: done, error (one clear message), killed, crashed or hung."""

    kind: str
    where: str
    seed: int
    level: str = "short"
    detail: str = ""
    first: str = ""
    runs: int = 0  # until it was done
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)  # damaged files that nobody named
    seconds: float = 0.0
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not (self.lost or self.twice or self.unnamed or self.problem) and self.first in ("done", "error", "killed")


class Trials:
    """Runs short trials below a folder; the undisturbed run is measured once for each place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.source = folder / "source"
        if not self.source.exists():
            short.pictures(self.source)
        self._wanted: dict[str, tuple[dict[str, str], float, dict[str, bytes]]] = {}
        self._number = 0

    def place(self, where: str, small: int = 0) -> Place:
        """A fresh place."""
        self._number += 1
        return Place(self.folder / f"place-{os.getpid()}-{self._number}", where, small)

    def start(self, place: Place, root: str = "root", patience: float = 20.0, call: Callable[[], int] | None = None) -> Attempt:
        """Start an attempt."""
        uri, at, journal = place.uri, place.root(root), place.folder / "journal"
        environment = place.environment | {"TOKENLOOM_STORE_PATIENCE": str(patience)}
        return Attempt(call or (lambda: short.attempt(uri, at, self.source, journal)), place.folder / "log", environment)

    def undisturbed(self, where: str) -> tuple[dict[str, str], float, dict[str, bytes]]:
        """Outcome, seconds and files of a run without a fault."""
        if where not in self._wanted:
            place = self.place(where)
            try:
                seconds = []
                for i in range(2):  # the second one is as warm as the trials
                    attempt = self.start(place, f"root{i}")
                    if attempt.wait(LONGEST) != short.DONE:
                        raise SystemExit(f"the undisturbed run fails: {attempt.log.read_text()[-2000:]}")
                    seconds.append(time.monotonic() - attempt.began)
                    files = place.files()
                    if i == 0:
                        for path in files:
                            place.put(path, None)
                self._wanted[where] = outcome(files), seconds[-1], files
            finally:
                place.close()
        return self._wanted[where]

    def run(self, kind: str, where: str, seed: int) -> Result:
        """One fault."""
        draw = random.Random(f"{kind} {where} {seed}")
        began = time.monotonic()
        wanted, duration, files = self.undisturbed(where)
        while True:
            result = Result(kind, where, seed)
            self._trial(result, draw, wanted, duration, files)
            if ENDED not in result.detail or duration < 0.05:
                break
            duration *= 0.5  # the machine is faster now: earlier
        result.seconds = round(time.monotonic() - began, 2)
        return result

    def _trial(self, result: Result, draw: random.Random, wanted: dict[str, str], duration: float, files: dict[str, bytes]) -> None:
        kind = result.kind
        place = self.place(result.where, DISK if kind == "disk full" else 0)
        there: set[str] = set()
        lines = 0
        try:
            if kind == "flip":
                self._flip(place, result, draw, duration, files)
            elif kind == "twice":
                self._twice(place, result, draw, duration)
            else:
                self._once(place, result, draw, duration, kind)
                if ENDED in result.detail:
                    return
                there, lines = kept(place.files()), len(self._journal(place))
            self._finish(place, result, there, lines)
            result.lost += differing(wanted, outcome(place.files()))
            if not result.ok:
                result.detail += " | " + (place.folder / "log").read_text()[-1500:]
        finally:
            place.close()

    # --- kinds --------------------------------------------------------------------------------------------------

    def _once(self, place: Place, result: Result, draw: random.Random, duration: float, kind: str) -> None:
        """A fault that hits one run."""
        moment, window = draw.uniform(0, duration), draw.uniform(0.2, 2.5)
        # One in four outages is longer than the patience: that run must end with one clear message.
        impatient = kind in ("S3 killed", "cut", "5xx") and draw.random() < 0.25
        if impatient:
            window = 6.0
        attempt = self.start(place, patience=0.5 if impatient else 20.0)
        result.detail = f"at {moment:.2f} s"
        if attempt.wait(moment) is None:
            if kind == "kill":
                attempt.kill()
            elif kind == "disk full":
                ballast = place.fill()
                attempt.wait(LONGEST)
                ballast.unlink()
            else:
                result.detail += f" for {window:.1f} s, patience {'0.5' if impatient else '20'} s"
                self._outage(place, kind, draw, attempt, window)
        else:
            result.detail += ENDED
        self._first(attempt, result)

    def _outage(self, place: Place, kind: str, draw: random.Random, attempt: Attempt, window: float) -> None:
        assert place.server is not None
        assert place.proxy is not None
        if kind == "S3 killed":
            place.server.kill()
            attempt.wait(window)
            place.server.start()
        elif kind == "5xx":
            fault = place.server.folder.with_name(place.server.folder.name + ".fault.json")
            fault.write_text(json.dumps({"status": draw.choice([500, 503]), "share": draw.choice([0.3, 1.0])}))
            attempt.wait(window)
            fault.unlink()
        else:
            with place.proxy.during("cut" if kind == "cut" else "held"):
                attempt.wait(window)

    def _twice(self, place: Place, result: Result, draw: random.Random, duration: float) -> None:
        """The same run twice at once, from two roots; in half of the trials the first one is killed while the other waits."""
        from tokenloom.tasks.store import leases

        def quick(root: str, host: str) -> Callable[[], int]:
            def call() -> int:
                leases.object_lease.__wrapped__.__defaults__ = (BEAT, STALE)  # type: ignore[attr-defined]
                leases.socket.gethostname = lambda: host  # of another machine its process ids say nothing
                return short.attempt(place.uri, place.root(root), self.source, place.folder / "journal")

            return call

        first = self.start(place, call=quick("one", "one"))
        later = draw.uniform(0, duration / 2)
        time.sleep(later)
        second = self.start(place, call=quick("two", "two"))
        result.detail = f"second {later:.2f} s later"
        killed = draw.random() < 0.5 and first.wait(draw.uniform(0, duration)) is None
        if killed:
            first.kill()
            at = time.monotonic()
            result.detail += ", first one killed"
            before = len(self._journal(place))
            there = kept(place.files())
            while second.wait(0.005) is None and len(self._journal(place)) == before:
                if time.monotonic() - at > LONGEST:
                    break
            result.detail += f", handed over in {time.monotonic() - at:.1f} s"
            self._first(second, result)
            result.twice += twice(there, self._journal(place)[before:])
        else:
            self._first(second, result)
            self._first(first, result)
            lines = self._journal(place)
            result.twice += sorted({line for line in lines if lines.count(line) > 1})

    def _flip(self, place: Place, result: Result, draw: random.Random, duration: float, files: dict[str, bytes]) -> None:
        """One byte of one file of the store becomes another one, in a finished store or in one whose run was killed."""
        finished = draw.random() < 0.6
        if finished:
            # Without the last artifacts what they depend on is used again.
            gone = draw.choice([(), ("generator/",), ("generator/", "tokens/")])
            for path, data in files.items():
                if not path.startswith(gone):
                    place.put(path, data)
        else:
            attempt = self.start(place)
            attempt.wait(draw.uniform(duration * 0.3, duration))
            attempt.kill()
        there = {path: data for path, data in place.files().items() if data and category(path)}
        # first the category, so that the few large files do not take all
        if not there:  # killed before anything was
            finished, there = True, {path: data for path, data in files.items() if data and category(path)}
            for path, data in files.items():
                place.put(path, data)
        wanted = draw.choice(sorted({category(path) for path in there}))
        path = draw.choice(sorted(p for p in there if category(p) == wanted))
        flipped, at = flip(there[path], draw)
        place.put(path, flipped)
        result.detail = f"{wanted}: byte {at} of {path} ({'finished' if finished else 'killed'} store)"
        attempt = self.start(place, "fresh")
        code = attempt.wait(LONGEST)
        result.first = self._ending(attempt, code)
        result.runs += 1
        self._verify(place)
        named = (place.folder / "log").read_text()
        if path not in named and not any(p == f".damaged/{path}" for p in place.files()):
            if place.files().get(path) == flipped:
                result.unnamed.append(path)
            else:
                result.detail += ", written anew"

    # --- what is common -----------------------------------------------------------------------------------------

    def _ending(self, attempt: Attempt, code: int | None) -> str:
        if code is None:
            attempt.kill()
            return "hung"
        if code == -signal.SIGKILL:
            return "killed"
        errors = [line for line in attempt.log.read_text().splitlines() if line.startswith("error: ")]
        return {short.DONE: "done", short.FAILED: "error" if errors else "crashed"}.get(code, "crashed")

    def _first(self, attempt: Attempt, result: Result) -> None:
        ending = self._ending(attempt, attempt.wait(LONGEST))
        result.first = ending if result.first in ("", "done", "killed") else result.first
        result.runs += 1

    def _journal(self, place: Place) -> list[str]:
        return short.Journal(place.folder / "journal").lines()

    def _finish(self, place: Place, result: Result, there: set[str], lines: int) -> None:
        """The same command until it is done; with a flipped byte a run may say so first.

        ``there`` is what had been kept when the first run ended, after so many ``lines`` of the journal.
        """
        for again in range(4):
            attempt = self.start(place, "fresh" if result.kind == "flip" else "root")
            code = attempt.wait(LONGEST)
            ending = self._ending(attempt, code)
            result.runs += 1
            if again == 0 and result.kind not in ("flip", "twice"):
                result.twice += twice(there, self._journal(place)[lines:])
            said = self._verify(place) if ending == "done" else ""
            if ending == "done" and not said:
                return
            if result.kind != "flip":
                result.problem = f"the next run ended {ending}; {said}"
                return
        result.problem = "never done"

    def _verify(self, place: Place) -> str:
        """What ``doctor --verify`` says, nothing when all is well."""
        uri, root = place.uri, place.root("doctor")
        attempt = self.start(place, call=lambda: short.verify(uri, root))
        if attempt.wait(LONGEST) == short.DONE:
            return ""
        return attempt.log.read_text()[-600:]


def category(path: str) -> str:
    """What a file is, for the flips; nothing for files that no run reads again."""
    name = path.rsplit("/", 1)[-1]
    if path.startswith((".", "mlflow/", "ray/")):
        return ""
    if name == "record.json":
        return "record"
    if "/checkpoints/" in path:
        return "checkpoint"
    if "/markers/" in path:
        return "marker"
    if "/shards/" in path:
        return "token shard" if path.startswith("tokens/") else "image shard"
    if name in ("weights.safetensors", "model.json"):
        return "weights"
    return "table" if path.startswith("dataset/") else ""


def flip(data: bytes, draw: random.Random) -> tuple[bytes, int]:
    """The data with one byte changed, and its place."""
    changed = bytearray(data)
    at = draw.randrange(len(data))
    changed[at] ^= draw.randrange(1, 256)
    return bytes(changed), at


def kinds() -> list[tuple[str, str]]:
    """All kinds of short trials with the places that they have."""
    found = [(kind, where) for kind in ("kill", "flip", "twice", "disk full") for where in ("local", "s3")]
    return found + [(kind, "s3") for kind in ("S3 killed", "cut", "held", "5xx")]


def as_row(result: Result) -> dict[str, Any]:
    """Plain form."""
    return {**result.__dict__, "ok": result.ok}
