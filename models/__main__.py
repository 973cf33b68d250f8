"""``python -m tokenloom.models``: the table of methods, with torch alone."""

from tokenloom.models.core.registry import table

if __name__ == "__main__":
    columns = ("name", "kind", "order", "feed", "net", "head", "paper")
    rows = [columns, *(tuple(str(r[c]) for c in columns) for r in table())]
    widths = [max(len(r[i]) for r in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip())
