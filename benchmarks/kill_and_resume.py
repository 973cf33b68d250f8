"""SIGKILL of the whole process tree at random moments, then the same command again: nothing may differ.

    python benchmarks/kill_and_resume.py smoke_var --kills 10 --seed 0

Runs the recipe once undisturbed, then in a second root kills it again and again at random moments of the time
that the undisturbed run took, lets it finish, and compares every fingerprint and the bytes of every weights file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MARK = "TOKENLOOM_KILL_MARK"


def command(run: str, root: Path, extra: list[str]) -> list[str]:
    return [sys.executable, "-m", "tokenloom.flows.cli.main", "run", run, "--root", str(root), "--json", *extra]


def start(run: str, root: Path, mark: str, extra: list[str]) -> subprocess.Popen[str]:
    """The run in a session of its own; all its processes carry a mark in their environment."""
    log = (root.parent / f"{root.name}.log").open("a")
    return subprocess.Popen(
        command(run, root, extra), env=os.environ | {MARK: mark}, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
    )


def kill_tree(mark: str) -> int:
    """SIGKILL every process with the mark, daemons of Ray and Prefect included; how many there were."""
    killed = 0
    for _ in range(5):
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        if not found:
            break
        for process in found:
            try:
                process.send_signal(signal.SIGKILL)
                killed += 1
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    return killed


def outcome(root: Path, stdout: str) -> dict[str, str]:
    """Fingerprint of each step, and SHA-256 of each weights file and token shard of the store.

    MLflow's copies are left out: it keeps them in folders named by random ids.
    """
    steps = {s["name"]: s["fingerprint"] for s in json.loads(stdout)["steps"]}
    store = root / "store"
    files = sorted([*store.rglob("weights.safetensors"), *store.rglob("*.parquet")])
    hashes = {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return {**{f"step {k}": v for k, v in steps.items()}, **hashes}


def finish(run: str, root: Path, mark: str, extra: list[str]) -> tuple[dict[str, str], float]:
    begun = time.monotonic()
    process = start(run, root, mark, extra)
    stdout, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{run} failed with exit code {process.returncode}; see {root.parent / root.name}.log")
    return outcome(root, stdout), time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="smoke_var")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    arguments, extra = parser.parse_known_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        mark = f"{os.getpid()}-{arguments.seed}"
        expected, seconds = finish(arguments.run, Path(folder) / "undisturbed", mark, extra)
        print(f"undisturbed: {seconds:.0f} s, {len(expected)} fingerprints and files")
        root, moments = Path(folder) / "killed", []
        for i in range(arguments.kills):
            process = start(arguments.run, root, mark, extra)
            moment = draw.uniform(0, seconds)
            try:
                process.communicate(timeout=moment)
                print(f"kill {i}: the run had finished before {moment:.1f} s, starting over")
                subprocess.run(["rm", "-rf", str(root)], check=True)
            except subprocess.TimeoutExpired:
                print(f"kill {i}: at {moment:.1f} s, {kill_tree(mark)} processes")
                process.communicate()
            moments.append(round(moment, 1))
        got, last = finish(arguments.run, root, mark, extra)
    differing = sorted(k for k in expected.keys() | got.keys() if expected.get(k) != got.get(k))
    print(f"after {arguments.kills} kills: {last:.0f} s to finish; {len(expected) - len(differing)} of {len(expected)} equal")
    if arguments.out:
        result = {"run": arguments.run, "seed": arguments.seed, "moments": moments, "compared": len(expected), "differing": differing}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if differing:
        raise SystemExit(f"differ: {differing}")


if __name__ == "__main__":
    main()
