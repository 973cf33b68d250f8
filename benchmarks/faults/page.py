"""The page of what was tried: ``python -m benchmarks.faults --page docs/trust.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.faults.trials import ENDED
from tokenloom.tasks.evaluation.report import markdown_table

Row = dict[str, Any]

_KINDS = {
    "kill": "SIGKILL of the run's process",
    "kill driver": "SIGKILL of the command and its parent",
    "kill tree": "SIGKILL of everything at once, Ray's daemons too",
    "kill worker": "SIGKILL of a training or extraction worker",
    "kill raylet": "SIGKILL of Ray's node daemon",
    "tracking killed": "SIGKILL of the MLflow server, which stays away until the run has ended",
    "S3 killed": "SIGKILL of the S3 server, started again 0.2 to 8 s later",
    "cut": "every connection to S3 is reset, for 0.2 to 8 s",
    "held": "nothing passes to or from S3, for 0.2 to 8 s",
    "5xx": "S3 answers some or all requests with 500 or 503, for 0.2 to 8 s",
    "disk full": "the disk of the root (and of a local store) is full until the run has ended",
    "flip": "one byte of one file of the store becomes another one",
    "twice": "the same run twice at once from two roots; in half of them the first one is killed",
}
_HEAD = """# What it withstands

Faults on purpose, at random moments of runs whose undisturbed result is known. A trial passes when the same command, given again where
the fault had ended it, leaves **the same fingerprints and bit-identical files** (weights, shards, tables, pictures) as a run without a
fault, when `doctor --verify` then finds nothing, and when nothing was computed a second time that had been kept before the fault.

- **short**: ingest, tokenizer, extraction, generator on 8x8 pictures in one process, with the real steps, store, leases and training loop.
- **whole**: `tokenloom run` on digits with Prefect, Ray Train, Ray actors and MLflow in processes of their own: ingest, tokenizer,
  extraction, features, generator, evaluation, registration. The registry must hold one version of the model afterwards.
- The S3 server is moto's, with its objects kept on disk so that it can be killed; requests pass a TCP proxy that cuts and holds them.

*Survived*: the run that was hit ended by itself as if nothing had happened, or, where it was the one that was killed, the next one
finished it. *Clear error*: it ended with one message that says what to do, and the next run finished it. *Lost*: results that differ
or are missing. *Again*: work done again that had been kept. Faults that came after the end of their run are not counted.

Each seed counts once, by its last result. Trials that failed led to corrections and were repeated with the same seed: eight flips of
image shards (made again in another order of rows, or not at all), one full disk (a traceback in place of a message) and one killed raylet
(Ray ended the run without a word) failed at first. So did two trials that were wrong themselves: runs from two roots, each with a registry.
"""


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last result of each fault that hit a run: a trial that was repeated counts once."""
    found = {(r["level"], r["kind"], r["where"], r["seed"]): r for r in rows if r["level"] != "cost"}
    return [row for row in found.values() if ENDED.strip() not in row["detail"] and row["detail"] != "nothing there yet"]


def page(rows: Iterable[Row]) -> str:
    """The page about these results."""
    rows = list(rows)
    counted = latest(rows)
    body = []
    for level in ("short", "whole"):
        for kind in _KINDS:
            for where in ("local", "s3"):
                mine = [r for r in counted if (r["level"], r["kind"], r["where"]) == (level, kind, where)]
                if mine:
                    body.append((kind, level, where, *_numbers(mine)))
    total = ("**all**", "", "", *_numbers(counted))
    head = ("kind", "chain", "store", "tried", "survived", "clear error", "neither", "lost", "again")
    flips = [r for r in counted if r["kind"] == "flip"]
    return "\n".join(
        [
            _HEAD,
            markdown_table(head, [*body, total]).rstrip(),
            "",
            "\n".join(f"- *{kind}*: {what}." for kind, what in _KINDS.items() if any(r["kind"] == kind for r in counted)),
            "",
            "## Flipped bytes",
            "",
            "Each was found when it was used, or by `tokenloom doctor --verify`, with the path of its file, unless a run wrote the file",
            "anew before anybody read it. The next run made the file again, the same to the bit. A damaged file is put aside under",
            "`.damaged/` of the store; `tokenloom gc --delete` removes it.",
            "",
            markdown_table(("file", "tried", "found and named", "mended"), _flips(flips)).rstrip(),
            "",
            *_costs([r for r in rows if r["level"] == "cost"]),
            "## Once more",
            "",
            "```\n"
            "python -m benchmarks.faults --minutes 20                     # short, all kinds in turn; goes on where it stopped\n"
            "python -m benchmarks.faults --level whole --minutes 30       # the whole chain\n"
            "python -m benchmarks.faults --kind kill --where s3 --seed 7  # one trial again\n"
            "python -m benchmarks.faults --page docs/trust.md             # this page, from benchmarks/results/faults.jsonl\n"
            "```",
            "",
            "Filling a disk mounts a small tmpfs and needs root's rights. The seed fixes kind, moment (as a share of the undisturbed run's",
            "time), file and byte; where a run stands at that moment is up to the machine.",
            "",
        ]
    )


def _numbers(rows: Sequence[Row]) -> tuple[int, ...]:
    ends = Counter("done" if r["first"] == "killed" else r["first"] for r in rows)
    bad = sum(1 for r in rows if r["first"] not in ("done", "killed", "error") or r["problem"])
    return len(rows), ends["done"], ends["error"], bad, sum(bool(r["lost"]) for r in rows), sum(bool(r["twice"]) for r in rows)


def _costs(rows: Sequence[Row]) -> list[str]:
    """What safety costs: seconds of undisturbed runs of the whole chain."""
    if not rows:
        return []
    body = [(r["where"], r["undisturbed"], r["again"], _share(r["first"]), _share(r["second"]), r["load"]) for r in _quietest(rows)]
    head = ("store", "whole run", "again, nothing to do", "first training step", "second training step", "load of the machine")
    return [
        "## Cost",
        "",
        "Seconds on two cores, of the quietest measurement; the load says how many processes wanted them, and above 2 all is slower.",
        "Of the training steps: what they take beside their training, and its share of a step that trains for 60 s. The first one",
        "starts Ray, and creates the tracking database.",
        "",
        markdown_table(head, body).rstrip(),
        "",
    ]


def _share(seconds: float) -> str:
    return f"{seconds} ({seconds / (60 + seconds):.0%})"


def _quietest(rows: Sequence[Row]) -> list[Row]:
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: float(row["load"])):
        best.setdefault(row["where"], row)
    return [best[where] for where in sorted(best)]


def _flips(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["detail"].split(":")[0], []).append(row)
    groups["**all**"] = list(rows)
    return [(name, len(mine), sum(not r["unnamed"] for r in mine), sum(r["ok"] for r in mine)) for name, mine in groups.items() if mine]
