"""``python -m tokenloom.models [NAME]``: the methods of each kind, or one with its published sizes; torch alone is needed."""

import sys

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.registry import described, tables


def _show(columns: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        try:
            text, columns, rows = described(sys.argv[1])
        except ConfigError as error:
            sys.exit(str(error))
        print(f"{text}\n")
        if rows:
            _show(columns, rows)
    else:
        for kind, (columns, rows) in tables().items():
            print(f"{kind}: {len(rows)}")
            _show(columns, rows)
            print()
