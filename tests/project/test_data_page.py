"""The examples of ``docs/data.md`` are ingested as they stand there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from image_files import rows_of
from image_sources import own_hub, png, write_idx, write_parquet, write_tar

from tokenloom.configs.schema import DataConfig
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("own_hub")
__all__ = ["own_hub"]
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
SECTIONS = dict(re.findall(r"^## [0-9]+\. (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
PETS = [(f"{label}-{i}", label, png(100 * ord(label[0]) + i)) for label in ("cat", "dog") for i in range(14)]


def put(files: dict[str, bytes | str]) -> None:
    for name, data in files.items():
        path = Path("pets") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)


def described(key: str, label: str) -> str:
    return json.dumps({"animal": label, "words": f"a {label}", "file_name": f"{key}.png"})


def tar(number: int, members: list[tuple[str, bytes]]) -> None:
    write_tar(Path("pets") / f"{number:03d}.tar", members)


def archives() -> None:
    for part in range(2):
        ends = (("png", 2), ("cls", 1), ("txt", 1))
        tar(part, [(f"{row[0]}.{end}", row[at] if at == 2 else row[at].encode()) for row in PETS[part::2] for end, at in ends])


def columns() -> None:
    write_parquet(Path("pets/a.parquet"), {"picture": [data for *_, data in PETS], "animal": [label for _, label, _ in PETS]})


def manifest() -> None:
    rows = [{"path": f"images/{key}.png", "label": label, "caption": f"a {label}", "split": "train"} for key, label, _ in PETS]
    put({f"images/{key}.png": data for key, _, data in PETS} | {"all.jsonl": "\n".join(json.dumps(row) for row in rows)})


def two_sources() -> None:
    put({f"photos/{label}/{key}.png": data for key, label, data in PETS[::2]})
    rows = PETS[1::2]
    write_parquet(Path("pets/drawings.parquet"), {"image": [d for *_, d in rows], "label": [n for _, n, _ in rows]})


def digits() -> None:
    write_idx(Path("pets/train-images-idx3-ubyte.gz"), np.random.default_rng(0).integers(0, 256, (28, 28, 28), dtype=np.uint8))
    write_idx(Path("pets/train-labels-idx1-ubyte.gz"), np.arange(28) % 2)


MAKE: list[tuple[Callable[[], None], list[str], bool]] = [
    (lambda: put({f"{label}/{key}.png": data for key, label, data in PETS}), ["cat", "dog"], False),
    (
        lambda: put({f"{('train', 'val')[i % 3 == 0]}/{label}/{key}.png": data for i, (key, label, data) in enumerate(PETS)}),
        ["cat", "dog"],
        False,
    ),
    (lambda: put({f"{key}.png": data for key, _, data in PETS} | {f"{key}.txt": f"a {label}" for key, label, _ in PETS}), ["all"], True),
    (
        lambda: put(
            {f"{key}.png": data for key, _, data in PETS} | {"metadata.jsonl": "\n".join(described(key, label) for key, label, _ in PETS)}
        ),
        ["cat", "dog"],
        True,
    ),
    (lambda: put({f"{label}/{key}{end}": data for key, label, data in PETS for end in (".png", ".control.png")}), ["cat", "dog"], False),
    (archives, ["cat", "dog"], True),
    (
        lambda: tar(0, [m for key, label, data in PETS for m in ((f"{key}.png", data), (f"{key}.json", described(key, label).encode()))]),
        ["cat", "dog"],
        True,
    ),
    (columns, ["cat", "dog"], False),
    (
        lambda: write_parquet(Path("pets/a.parquet"), {"image": [d for *_, d in PETS], "label": [n for _, n, _ in PETS]}),
        ["cat", "dog"],
        False,
    ),
    (digits, ["0", "1"], False),
    (manifest, ["cat", "dog"], True),
    (two_sources, ["cat", "dog"], False),
]


@pytest.mark.parametrize(("number", "title"), list(enumerate(SECTIONS)))
def test_an_example_is_ingested(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, title: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, classes, captioned = MAKE[number]
    make()
    (example,) = re.findall(r"```yaml\n(.*?)```", SECTIONS[title], re.DOTALL)
    outcome = ingest("pets", DataConfig(**yaml.safe_load(example)["data"]), store)
    assert store.record(outcome.artifact).notes["classes"] == classes
    rows = rows_of(store, outcome)
    assert (len(rows), outcome.metrics["rejected"]) == (28, 0)
    assert {bool(row["caption"]) for row in rows} == {captioned}
    assert all(("column:control" in row) == (number == 4) for row in rows)


def test_there_are_twelve() -> None:
    assert len(SECTIONS) == len(MAKE) == 12
