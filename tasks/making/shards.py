"""One shard of a dataset: its items read and fitted, written as Parquet, with what was rejected and why."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.configs.schema import DataConfig
from tokenloom.tasks import modalities
from tokenloom.tasks.data.columns import PREFIX, stored
from tokenloom.tasks.data.listing import Entry, Item, caption_of, printable, shown, stamped, storable
from tokenloom.tasks.data.matching import Matched, Unit
from tokenloom.tasks.modalities.base import Fitted, Modality, Rejected
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.sources.noticed import Noticed
from tokenloom.tasks.store.artifacts import canonical_json, sha256_of
from tokenloom.tasks.store.storage import Storage


def shard_schema(modality: Modality, further: Iterable[str] = ()) -> pa.Schema:
    """The columns of a dataset shard of this kind, with those of ``data.columns``."""
    beside = [(stored(name), pa.binary()) for name in further]
    rest = [("label", pa.int32()), ("caption", pa.string()), ("source", pa.string())]
    return pa.schema([("key", pa.string()), *modality.columns, *beside, *rest])


def table_bytes(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Parquet bytes of rows; the same rows give the same bytes."""
    sink = io.BytesIO()
    # Images are compressed already: again would cost time and save nothing.
    compression = {field.name: "none" if pa.types.is_binary(field.type) else "zstd" for field in schema}
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink, compression=compression, write_statistics=False)
    return sink.getvalue()


def beside(modality: Modality, caption: str | None, columns: Mapping[str, bytes | None]) -> str:
    """Hash of what an item holds beside its signal and class: its caption, and the signals of its columns; empty without any."""
    given = {name: modality.column(value) for name, value in columns.items() if value is not None}
    if caption is None and not given:
        return ""
    hashes = {name: sha256_of(repr(value.shape).encode() + value.tobytes()) for name, value in given.items()}
    return sha256_of(canonical_json([caption, hashes]))[:32]


@dataclass(frozen=True)
class Making:
    """What the shards of a dataset have in common; plain data that can travel to a worker.

    ``single``: an entry has one item.  ``names`` and ``phrases`` are those of the classes (``Source``).
    """

    config: DataConfig
    classes: list[str]
    single: bool
    names: dict[str, str]
    phrases: dict[str, str]

    @classmethod
    def of(cls, plan: Matched, config: DataConfig) -> Making:
        """Of what is to be made anew."""
        return cls(config, plan.classes, plan.source.single, dict(plan.source.names), dict(plan.source.phrases))


class Staging:
    """A folder of the store in which shards wait for their dataset, each with a marker."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self.storage, self.folder = storage, folder

    def left(self, key: str) -> dict[str, Any] | None:
        """What an interrupted run made under this key, if it is whole and needs no second look."""
        try:
            made: dict[str, Any] = json.loads(self.storage.read(f"{self.folder}/{key}.json"))
            whole = made["file"] is None or self.storage.size(f"{self.folder}/{made['file']}") == made["size"]
            return made | {"left": True} if whole and not any(reject["retry"] for reject in made["rejects"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, made: dict[str, Any], data: bytes) -> None:
        """Write a shard, and then its marker."""
        if made["file"] is not None:
            self.storage.write(f"{self.folder}/{made['file']}", data)
        self.storage.write(f"{self.folder}/{key}.json", json.dumps(made).encode())


def make_shard(unit: Unit, making: Making, staging: Staging, pool: ThreadPoolExecutor, warned: Noticed) -> dict[str, Any]:
    """Make one shard in the staging folder unless an interrupted run left it there (then ``left``).

    Returns:
        split, file (None without a usable item), rows, size and sha256, ``index`` (a row of the items table each; labels are
        names), ``rejects``, ``digests`` of single entries, and ``read``: bytes of the raw items.
    """
    config, classes = making.config, making.classes
    key = unit.key(config, classes)
    if (left := staging.left(key)) is not None:
        return left
    modality, numbers = modalities.kind(config.kind), {name: i for i, name in enumerate(classes)}

    def fit(pair: tuple[Entry, Item]) -> Fitted | Rejected:
        with warned.item(shown(*pair)):
            return _fitted(modality, pair[1], config, numbers)

    made: dict[str, Any] = {"split": unit.split, "file": None, "rows": 0, "size": 0, "sha256": "", "read": 0}
    rows, index, rejects, digests = [], [], [], {}
    for (entry, item), result in zip(unit.items, list(pool.map(fit, unit.items))):
        made["read"] += result.read
        if making.single and result.digest:
            digests[entry.name] = stamped(result.digest, entry.stamp)
        if isinstance(result, Rejected):
            reject = {"entry": entry.name, "source": shown(entry, item), "reason": plainly(result.reason), "retry": result.retry}
            if config.on_bad == "stop":
                raise StepError(f"{reject['source']}: {reject['reason']} (data.on_bad is stop)")
            rejects.append(reject | {"label": item.label})
            continue
        caption = caption_of(item, config.captions, making.names, making.phrases)
        rows.append({"key": item.key, **result.columns, "label": result.label, "caption": caption, "source": item.source})
        columns = {name: value for name, value in result.columns.items() if name.startswith(PREFIX)}
        noted = {"label": classes[result.label], "pixels": result.content.hex(), "caption_bytes": len((caption or "").encode())}
        place = {"key": item.key, "entry": entry.name, "split": unit.split}
        index.append(place | noted | {"beside": beside(modality, caption, columns)})
    made |= {"rows": len(rows), "index": index, "rejects": rejects, "digests": digests}
    data = b""
    if rows:
        data = table_bytes(rows, shard_schema(modality, config.columns or ()))
        sha256 = sha256_of(data)
        made |= {"file": f"{unit.split}-{sha256[:12]}.parquet", "size": len(data), "sha256": sha256}
    staging.put(key, made, data)
    return made


def _fitted(modality: Modality, item: Item, config: DataConfig, numbers: Mapping[str, int]) -> Fitted | Rejected:
    """The item made to fit, unless a table could not hold its texts."""
    result = modality.fit(item, config, numbers)
    for what, text in (("caption", item.caption), ("key", item.key)):
        if isinstance(result, Fitted) and text is not None and not storable(text):
            return Rejected(f"its {what} is not Unicode text: {printable(text)}", result.digest)
    return result


def plainly(reason: str) -> str:
    """A reason as it is in every run: without addresses of memory, and as text that a table can hold."""
    return printable(re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", reason))


def filled(rows: list[dict[str, Any]], raw: bytes, modality: Modality) -> list[dict[str, Any]]:
    """Rows of an items table of an earlier version, with what is read from their shard: ``caption_bytes`` and ``beside``."""
    file = pq.ParquetFile(pa.BufferReader(raw))
    names = [name for name in file.schema_arrow.names if name.startswith(PREFIX)]
    found = {}
    for row in file.read(["key", "caption", *names]).to_pylist():
        columns = {name: row[name] for name in names}
        found[row["key"]] = {"caption_bytes": len((row["caption"] or "").encode()), "beside": beside(modality, row["caption"], columns)}
    return [{**row, **found[row["key"]]} for row in rows]
