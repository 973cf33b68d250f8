"""``python -m benchmarks.speed sampling|training|loader|loop|start [--quick] [--only FAMILY]``; the last line is JSON of the ratios.

With ``--keep`` the result goes into ``benchmarks/results/speed.json``, from which ``docs/speed.md`` is written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.speed.page import keep
from benchmarks.speed.timing import machine

KINDS = ("sampling", "training", "loader", "loop", "start")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--quick", action="store_true", help="small sizes, less than a minute")
    parser.add_argument("--only", help="one family")
    parser.add_argument("--keep", action="store_true", help="keep the result and write the page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = importlib.import_module(f"benchmarks.speed.{given.kind}").measure(given.quick, given.only)
    if given.keep:
        keep(given.kind, given.quick, machine(), found)
    print(json.dumps({"kind": given.kind, "quick": given.quick, "ratios": {name: row["ratio"] for name, row in found.items()}}))


if __name__ == "__main__":
    main()
