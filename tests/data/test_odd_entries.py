"""One odd entry never ends ingest: it is taken, or quarantined by its name; and memory is bounded by the picture that is wanted."""

from __future__ import annotations

import codecs
import json
import os
import resource
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import config, encoded, picture, quarantine, rows_of, two_classes
from image_sources import png, rows_of_classes, write_parquet, write_tar
from PIL import Image

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.listing import natural, printable
from tokenloom.tasks.making.shards import plainly
from tokenloom.tasks.modalities.image import fit as fitting
from tokenloom.tasks.modalities.image.fit import UnusableError, fit
from tokenloom.tasks.modalities.image.formats import IMAGE_SUFFIXES
from tokenloom.tasks.modalities.image.labels import text_of
from tokenloom.tasks.modalities.image.sources import open_source
from tokenloom.tasks.store.artifacts import Store


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_names_that_are_not_utf8(store: Store, tmp_path: Path) -> None:
    images = two_classes(tmp_path)
    put(images / "cat" / os.fsdecode(b"caf\xe9.png"), png(1))
    put(images / os.fsdecode(b"m\xfcll") / "0.png", png(2))
    outcome = ingest("pets", config(f"folder:{images}"), store)
    assert store.record(outcome.artifact).notes["classes"] == ["cat", "dog"]
    assert quarantine(store, outcome) == {
        "caf\\xe9.png": "its name is not UTF-8: rename it",
        "0.png": "the name of its folder is not UTF-8: m\\xfcll",
    }
    assert ingest("pets", config(f"folder:{images}"), store).status == "cached"
    members = [
        (f"{key}.{end}", data)
        for key, label, image in rows_of_classes(cat=16, dog=12)
        for end, data in (("png", image), ("cls", label.encode()))
    ]
    write_tar(tmp_path / "a.tar", [*members, (os.fsdecode(b"caf\xe9.png"), png(1)), (os.fsdecode(b"caf\xe9.cls"), b"cat")])
    outcome = ingest("w", config(f"webdataset:{tmp_path}/a.tar"), store)
    assert quarantine(store, outcome) == {"a.tar#caf\\xe9": "its name is not UTF-8"}


def test_texts_that_are_not_utf8_in_parquet(store: Store, tmp_path: Path) -> None:
    rows = rows_of_classes(cat=16, dog=12)
    raw = [label.encode() for _, label, _ in rows[:-1]] + [b"caf\xe9"]
    sizes = np.cumsum([0, *map(len, raw)], dtype=np.int32)
    text = pa.StringArray.from_buffers(len(raw), pa.py_buffer(sizes.tobytes()), pa.py_buffer(b"".join(raw)))
    pq.write_table(pa.table({"image": [data for _, _, data in rows], "label": text, "caption": text}), tmp_path / "a.parquet")
    outcome = ingest("p", config(f"parquet:{tmp_path}/a.parquet"), store)
    assert quarantine(store, outcome) == {"a.parquet#27": "its label is not UTF-8: b'caf\\xe9'"}


@pytest.mark.parametrize("name", ["10²", "٣", "7" * 5000, "a" * 3 + "007", ""])
def test_names_with_any_digits_are_sorted(name: str) -> None:
    names = sorted(["2", "10", name, "02"], key=natural)
    assert names.index("2") < names.index("10")
    assert len({natural(each) for each in names}) == 4


def test_classes_with_odd_digits(store: Store, tmp_path: Path) -> None:
    images = two_classes(tmp_path)
    for i in range(6):
        put(images / "10²" / f"{i}²3.png", png(i))
    assert store.record(ingest("pets", config(f"folder:{images}"), store).artifact).notes["classes"] == ["10²", "cat", "dog"]


def test_captions_that_are_no_text(store: Store, tmp_path: Path) -> None:
    rows = rows_of_classes(cat=16, dog=12)
    odd: dict[int, Any] = {3: ["a", "b"], 4: {"a": 1}, 5: "\ud800"}
    members = [
        (f"{key}.json", json.dumps({"label": label, "caption": odd.get(i, "a pet")}).encode()) for i, (key, label, _) in enumerate(rows)
    ]
    members += [(f"{key}.png", data) for key, _, data in rows]
    write_tar(tmp_path / "a.tar", members)
    reasons = quarantine(store, ingest("w", config(f"webdataset:{tmp_path}/a.tar"), store))
    assert set(reasons) == {f"a.tar#{rows[i][0]}" for i in odd}
    assert sum("is no text" in reason for reason in reasons.values()) == 2
    assert sum("is not Unicode text" in reason for reason in reasons.values()) == 1
    images = two_classes(tmp_path)
    table = [{"file_name": f"cat/{i}.png", "text": ["a", "b"] if i == 3 else "a cat"} for i in range(10)]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    assert quarantine(store, ingest("f", config(f"folder:{images}"), store)) == {"3.png": "its caption is no text: ['a', 'b']"}


def test_a_very_long_picture_costs_no_more_than_itself() -> None:
    long = encoded(Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), 600)[None]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = fit(long, config("x", size=64, fit="crop", channels=3))
    assert image.shape == (64, 64, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize("shape", [(40, 900), (900, 31), (33, 777)])
def test_only_the_middle_is_made_with_the_same_values(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(100, 150, (*shape, 3), dtype=np.uint8)  # no value that the filter's first pass would cut
    settings = config("x", size=48, fit="crop", channels=3)
    whole = fit(pixels, settings)
    monkeypatch.setattr(fitting, "_MOST", 0)
    assert np.abs(fit(pixels, settings).astype(int) - whole.astype(int)).max() <= 1


def test_threads_share_a_budget_of_pixels() -> None:
    budget, most, held, lock = fitting._Budget(100), [0], [0], threading.Lock()

    def work() -> None:
        with budget.of(60):
            with lock:
                held[0] += 60
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= 60

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 60
    with budget.of(1000):
        pass


def test_pngs_with_long_texts_are_taken() -> None:
    raw = encoded(Image.fromarray(np.full((8, 8), 77, np.uint8)))
    chunk = b"zTXt" + b"Comment\0\0" + zlib.compress(b"a" * 70_000_000)
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert np.unique(fit(raw[:33] + text + raw[33:], config("x"))).tolist() == [77]
    with pytest.raises(UnusableError, match="corrupt"):
        fit(raw[:33] + text, config("x"))


def test_twelve_bits_in_sixteen() -> None:
    twelve = encoded(Image.fromarray(np.full((8, 8), 0x800, np.uint16)))
    with pytest.raises(UnusableError, match=r"16 bits of which 12 or fewer are used \(up to 2048\): .* set data\.bits"):
        fit(twelve, config("x"))
    assert np.unique(fit(twelve, config("x", bits=12))).tolist() == [0x80]
    assert np.unique(fit(encoded(Image.fromarray(np.zeros((8, 8), np.uint16))), config("x"))).tolist() == [0]
    with pytest.raises(UnusableError, match=r"more than data\.bits=12"):
        fit(encoded(Image.fromarray(np.full((8, 8), 0x8000, np.uint16))), config("x", bits=12))
    chunk = b"sBIT\x0c"
    said = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert np.unique(fit(twelve[:33] + said + twelve[33:], config("x"))).tolist() == [0x80]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_captions_in_the_codings_of_editors(coding: str) -> None:
    assert text_of("a cät\n".encode(coding), "x.txt") == "a cät"


def test_captions_in_no_coding_are_named(store: Store, tmp_path: Path) -> None:
    images = two_classes(tmp_path)
    put(images / "cat/3.txt", b"caf\xe9")
    put(images / "cat/4.txt", codecs.BOM_UTF16_LE + b"a")
    reasons = quarantine(store, ingest("pets", config(f"folder:{images}"), store))
    assert reasons == {f"{i}.png": f"its caption {i}.txt is neither UTF-8 nor UTF-16 text" for i in (3, 4)}


def test_pictures_by_the_ends_of_their_names(store: Store, tmp_path: Path) -> None:
    images = two_classes(tmp_path)
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    put(images / "cat/a.jfif", encoded(colour, "JPEG"))
    put(images / "cat/b.JPE", encoded(colour, "JPEG"))
    taken = {"cat/a.jfif", "cat/b.JPE"}
    if ".avif" in IMAGE_SUFFIXES:
        put(images / "cat/c.avif", encoded(colour, "AVIF"))
        taken.add("cat/c.avif")
    outcome = ingest("pets", config(f"folder:{images}"), store)
    assert taken <= {row["key"] for row in rows_of(store, outcome)}
    assert outcome.metrics["rejected"] == 0


def test_what_a_folder_holds_besides_is_taken_or_told(store: Store, tmp_path: Path) -> None:
    images, other = two_classes(tmp_path), tmp_path / "elsewhere"
    picture(images / "loose.png", 1)
    picture(other / "deep" / "linked.png", 2)
    (images / "cat" / "more").symlink_to(other, target_is_directory=True)
    (images / "cat" / "round").symlink_to(images, target_is_directory=True)
    (images / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(images / "dog" / "pipe.png")
    put(images / "__MACOSX" / "x.png", b"")
    outcome = ingest("pets", config(f"folder:{images}"), store)
    assert "cat/more/deep/linked.png" in {row["key"] for row in rows_of(store, outcome)}
    assert quarantine(store, outcome) == {
        "loose.png": "it stands beside the class folders, so that it is of no class",
        "round": "a link to a folder that holds it: it would never end",
        "gone.png": f"a link to {tmp_path}/nowhere.png, which is not there",
        "pipe.png": "neither a file nor a folder",
    }
    assert store.record(outcome.artifact).notes["classes"] == ["cat", "dog"]


def test_members_of_archives(store: Store, tmp_path: Path) -> None:
    rows = rows_of_classes(cat=16, dog=12)
    members = [
        (f"2024:01:{i:02d}/{key}.{end}", data)
        for i, (key, label, image) in enumerate(rows)
        for end, data in (("png", image), ("cls", label.encode()))
    ]
    members += [(f"22.{i:02d}.{end}", data) for i in range(4) for end, data in (("jpg", png(50 + i)), ("cls", b"cat"), ("txt", b"dots"))]
    members += [("twice.png", png(90)), ("twice.cls", b"cat"), ("twice.png", png(91))]
    members += [("both.png", png(92)), ("both.jpg", png(93)), ("both.cls", b"dog"), ("both.mask.png", png(94)), ("both.npy", b"123")]
    write_tar(tmp_path / "a.tar", members)
    outcome = ingest("w", config(f"webdataset:{tmp_path}/a.tar"), store)
    found = {row["key"]: row for row in rows_of(store, outcome)}
    assert len(found) == 28 + 4 + 2
    assert {found[f"a.tar#22.{i:02d}"]["caption"] for i in range(4)} == {"dots"}
    reasons = quarantine(store, outcome)
    assert reasons == {
        "a.tar#twice.png": "another member of this name comes after it, which is used",
        "a.tar#both.jpg": "a second image of its sample, of which .png is used",
    }
    assert "members that are not used: .mask.png (1), .npy (1)" in outcome.told


def test_patterns_as_a_shell_reads_them(tmp_path: Path) -> None:
    for i in range(12):
        write_tar(tmp_path / "w" / f"x{i:03d}.tar", [(f"{i}.png", png(i))])
        write_parquet(tmp_path / "p" / f"{'ab'[i % 2]}{i}.parquet", {"image": [png(i)]})

    def names(source: str) -> list[str]:
        return [entry.name for entry in open_source(config(source)).entries]

    assert names(f"webdataset:{tmp_path}/w/x{{000..009}}.tar") == [f"x{i:03d}.tar" for i in range(10)]
    assert names(f"webdataset:{tmp_path}/w/x00{{1,3}}.tar") == ["x001.tar", "x003.tar"]
    assert len(names(f"webdataset:{tmp_path}/w")) == len(names(f"webdataset:{tmp_path}/w/*.tar")) == 12
    assert names(f"parquet:{tmp_path}/p/{{b,a}}*.parquet")[0] == "b1.parquet"
    assert len(names(f"parquet:{tmp_path}/p")) == 12
    with pytest.raises(ConfigError, match=r"2 of its files are not there \(first: .*x012\.tar\)"):
        names(f"webdataset:{tmp_path}/w/x{{010..013}}.tar")
    with pytest.raises(ConfigError, match=r"the folder holds no file that ends in \.tar"):
        names(f"webdataset:{tmp_path}/p")


def test_no_reason_holds_an_address(store: Store, tmp_path: Path) -> None:
    images = two_classes(tmp_path)
    put(images / "cat/a.png", b"?")
    (reason,) = quarantine(store, ingest("pets", config(f"folder:{images}"), store)).values()
    assert " at 0x" not in reason
    assert plainly("cannot identify <_io.BytesIO object at 0x7f0a1b> here") == "cannot identify <_io.BytesIO> here"
    assert printable("caf\udce9") == "caf\\xe9"


def test_what_was_rejected_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenloom.flows.cli.main import code_of

    images, root = two_classes(tmp_path), tmp_path / "root"
    for name in ("a", "b"):
        put(images / f"cat/{name}.png", b"?")
    put(images / "dog/notes.pdf", b"%PDF")
    ingest("pets", config(f"folder:{images}"), Store(str(root / "store"), root))

    def shown(*arguments: str) -> str:
        assert code_of(["show", *arguments, "--root", str(root), "--store", str(root / "store")]) == 0
        return capsys.readouterr().out

    text = shown("pets", "--rejected")
    assert "3 rejected" in text
    assert f"2 x corrupt or unreadable: cannot identify image file <_io.BytesIO>\n  {images}/cat/a.png\n  {images}/cat/b.png\n" in text
    assert f"1 x not an image format (.pdf)\n  {images}/dog/notes.pdf" in text
    rejected = json.loads(shown("pets", "--rejected", "--json"))["rejected"]
    assert {row["source"] for row in rejected} == {f"{images}/cat/a.png", f"{images}/cat/b.png", f"{images}/dog/notes.pdf"}
