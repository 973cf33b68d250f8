"""Faults on purpose, again and again; every one prints its seed.

python -m benchmarks.faults --minutes 20                    # short pipeline, all kinds in turn, results appended
python -m benchmarks.faults --level whole --minutes 30      # the whole chain: Prefect's flow, Ray, MLflow
python -m benchmarks.faults --kind kill --where s3 --seed 7 # one again
python -m benchmarks.faults --page docs/trust.md            # the table, from all results so far
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results" / "faults.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=("short", "whole"), default="short")
    parser.add_argument("--kind", action="append", help="only this kind (may be repeated)")
    parser.add_argument("--where", choices=("local", "s3"))
    parser.add_argument("--seed", type=int, help="only this seed, whatever has been tried")
    parser.add_argument("--count", type=int, default=1000, help="at most so many faults")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, help="where the trials work [default: a temporary folder]")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="write the page about all results, and run nothing")
    arguments = parser.parse_args()
    if arguments.page:
        from benchmarks.faults.page import page

        arguments.page.write_text(page(rows_of(arguments.results)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        _run(arguments, Path(folder))


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    if arguments.level == "short":
        from benchmarks.faults import trials

        runner: Any = trials.Trials(folder)
        chosen = trials.kinds()
        _warm(folder)
    else:
        from benchmarks.faults import whole

        runner = whole.Whole(folder)
        chosen = whole.kinds()
    chosen = [(k, w) for k, w in chosen if (not arguments.kind or k in arguments.kind) and arguments.where in (None, w)]
    tried = {(r["level"], r["kind"], r["where"], r["seed"]) for r in rows_of(arguments.results) if r["level"] != "cost"}
    began, done, known = time.monotonic(), 0, 0
    for seed in [arguments.seed] if arguments.seed is not None else range(10**6):
        for kind, where in chosen:
            if arguments.seed is None and (arguments.level, kind, where, seed) in tried:
                continue
            if done >= arguments.count or time.monotonic() - began > 60 * arguments.minutes:
                return
            result = runner.run(kind, where, seed)
            done += 1
            rows = [cost.row() for cost in getattr(runner, "costs", [])[known:]] + [result.__dict__ | {"ok": result.ok}]
            known += len(rows) - 1
            with open(arguments.results, "a") as file:
                file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)
            verdict = "ok " if result.ok else "BAD"
            print(
                f"{verdict} {kind} {where} --seed {seed}: {result.first}, {result.runs} runs, {result.seconds} s; {result.detail}",
                flush=True,
            )
            if not result.ok:
                print(f"    lost {result.lost} twice {result.twice} unnamed {result.unnamed} {result.problem}", flush=True)


def _warm(folder: Path) -> None:
    """Import everything before the first fork, so that a trial takes about a second."""
    from benchmarks.faults import s3server, short

    assert short.attempt(str(folder / "warm"), folder / "warm-root", folder / "source", folder / "warm-journal") == short.DONE
    s3server.Durable(lambda *_: [], folder / "warm-objects", "warm")
    import boto3
    from moto.moto_server.werkzeug_app import create_backend_app

    create_backend_app("s3")
    boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
