"""``python -m tokenloom.models``: the methods of each kind, with torch alone."""

from tokenloom.models.core.registry import tables

if __name__ == "__main__":
    for kind, (columns, rows) in tables().items():
        print(f"{kind}: {len(rows)}")
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        for row in [columns, *rows]:
            print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
        print()
