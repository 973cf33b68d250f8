"""What a trial must show: the same results as without the fault, a whole store, and nothing done twice that had been kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

Files = Mapping[str, bytes]
#: Files that say when and how fast something was made, or pass by; everything else must be the same to the bit.
_PASSING = (
    "record.json",
    "state.json",
    "result.json",
    "plan.json",
    "report.html",
    "curves.png",
    "metrics.json",
    "failure.json",
    "stop.json",
    "README.md",
)
_BESIDE = (".leases/", ".locks/", ".damaged/", ".probe", "mlflow/", "ray/")


def outcome(files: Files) -> dict[str, str]:
    """What a finished pipeline left: the hash of each lasting file, and the fingerprint of each artifact."""
    found = {}
    for path, data in files.items():
        if path.startswith(_BESIDE):
            continue
        folder, name = path.rsplit("/", 1)
        if name == "record.json":
            found[f"artifact {folder}"] = "complete"
        elif name not in _PASSING and "/metrics/" not in path and "/markers/" not in path and "/checkpoints/" not in path:
            found[path] = hashlib.sha256(data).hexdigest()
    return found


def differing(wanted: Mapping[str, str], got: Mapping[str, str]) -> list[str]:
    """Names of what is missing or other than it should be."""
    return sorted(name for name in wanted if got.get(name) != wanted[name])


def kept(files: Files) -> set[str]:
    """What survives a process that dies now, in the words of the journal: finished artifacts, checkpoints, encoded shards."""
    found = set()
    for path in files:
        folder, _, name = path.rpartition("/")
        if name == "record.json":
            found.add(f"artifact {folder}")
        elif name == "state.json":
            at, _, step = folder.partition("/checkpoints/step-")
            found |= {f"step {at} {i}" for i in range(1, int(step) + 1)}
        elif "/markers/" in path:
            found.add(f"shard {folder.removesuffix('/markers')}/{name.removesuffix('.json')}")
    return found


def twice(before: set[str], later: Iterable[str]) -> list[str]:
    """What was computed although it, or the artifact that it belongs to, had been kept."""
    done = {line.removeprefix("artifact ") for line in before if line.startswith("artifact ")}
    return sorted({line for line in later if line in before or line.split(" ")[1].rsplit("/", 1)[0] in done or line.split(" ")[1] in done})


def rewritten(before: Files, after: Files) -> list[str]:
    """Records that were there and are not the same bytes any more: their steps were done again."""
    return sorted(p for p in before if p.endswith("/record.json") and not p.startswith(_BESIDE) and after.get(p) != before[p])


def resumed_early(before: Files, after: Files) -> list[str]:
    """Trainings that went on from an earlier step than the newest checkpoint that was there."""
    newest: dict[str, int] = {}
    for path in before:
        if path.endswith("/state.json"):
            at, _, number = path.rsplit("/", 1)[0].partition("/checkpoints/step-")
            newest[at] = max(newest.get(at, 0), int(number))
    found = []
    for at, step in newest.items():
        record = f"{at}/record.json"
        if record not in before and record in after and json.loads(after[record])["metrics"].get("resumed_from", step) < step:
            found.append(at)
    return sorted(found)
