"""Sources of tar files in webdataset form: members of one name and different ends make a sample.

Nothing is ever unpacked; members are read at their offsets.
"""

from __future__ import annotations

import base64
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import ONE_CLASS, Entry, Item, Source, file_digest, natural, printable, storable
from tokenloom.tasks.data.reading import ReadError, nothing, opened
from tokenloom.tasks.modalities.image.formats import IMAGE_SUFFIXES
from tokenloom.tasks.modalities.image.labels import NONE, Place, Places, Wanted, file_splits, label_of, split_of_file, stamp_of, text_of
from tokenloom.tasks.modalities.image.tables import check_names
from tokenloom.tasks.sources.far import Far
from tokenloom.tasks.sources.far import Place as File
from tokenloom.tasks.sources.remembered import remembered

#: Ends of members that are looked at, beside images and those of ``data.columns``.
_TEXTS = (".cls", ".txt", ".json")
_SMALL = 1 << 16  # bytes of a text that is kept with the listing of an archive elsewhere
At = tuple[int, int]  # offset and size of a member


@dataclass
class Listing:
    """What an archive holds: samples by name with their members by end, members that cannot be used and why, others by end."""

    samples: dict[str, dict[str, At]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    texts: dict[At, bytes] = field(default_factory=dict)  # contents of small members of an archive elsewhere

    def plain(self) -> dict[str, Any]:
        """Plain data, from which ``of`` makes it again."""
        texts = [[*at, base64.b85encode(data).decode()] for at, data in self.texts.items()]
        return {"samples": self.samples, "bad": self.bad, "unused": self.unused, "texts": texts}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Listing:
        """Inverse of ``plain``."""
        samples = {key: {end: (at[0], at[1]) for end, at in parts.items()} for key, parts in plain["samples"].items()}
        texts = {(at, size): base64.b85decode(data) for at, size, data in plain["texts"]}
        return cls(samples, [(name, why) for name, why in plain["bad"]], Counter(plain["unused"]), texts)


def safe_name(name: str) -> bool:
    """Whether a name from an archive stays inside of any folder."""
    outside = name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts
    return not (outside or re.match(r"[A-Za-z]:[\\/]", name) or "\0" in name)


def tar_source(where: str, paths: list[File], wanted: Wanted, given_splits: Mapping[File, str] | None = None) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.webdataset``; ``given_splits`` are of files whose names do not say them."""
    listings = {path: members(where, path, tuple(wanted.columns.values())) for path in paths}
    reader = _Labels(where, listings, wanted)
    splits = file_splits(paths, wanted) if given_splits is None else given_splits

    def items(entry: Entry) -> Iterator[Item]:
        path = entry.path
        assert path is not None
        for name, problem in listings[path].bad:
            source = f"{entry.name}#{printable(name)}"
            yield Item(source, nothing, None, None, source, problem)
        for key, parts in listings[path].samples.items():
            made = _item(f"{entry.name}#{printable(key)}", path, key, parts, wanted, reader)
            yield replace(made, split=made.split or split_of_file(splits, path, made.key, wanted))

    found = {name for path in paths for key in listings[path].samples if (name := reader.label(path, key)) is not None}
    entries = tuple(Entry.of(path, path.name, stamp=reader.stamp(path) + splits.get(path, "")) for path in paths)
    check_names(where, entries)
    unused = sum((one.unused for one in listings.values()), Counter[str]())
    ignored = f"members that are not used: {', '.join(f'{end} ({n:,})' for end, n in unused.most_common(4))}" if unused else ""
    how = "; ".join(part for part in (reader.how, "splits by file" if splits else "", ignored) if part)
    return Source(tuple(sorted(found, key=natural)), entries, items, file_digest, captioned=reader.captioned, how=how)


def _item(place: str, path: File, key: str, parts: dict[str, At], wanted: Wanted, reader: _Labels) -> Item:
    image = next((end for end in parts if end in IMAGE_SUFFIXES), None)
    read = partial(content, path, parts[image] if image else (0, 0))
    beside = {name: partial(content, path, parts[end]) for name, end in wanted.columns.items() if end in parts}
    where, problem, retry, text, label = Place(None), None, False, None, None
    try:
        where = reader.place(path, key)
        label, text, problem = where.label, reader.caption(path, key), where.problem
    except ReadError as error:
        problem, retry = str(error), True
    except ValueError as error:
        problem = str(error)
    if not storable(key):
        problem = "its name is not UTF-8"
    if image is None:
        problem = f"no image among {', '.join(parts)}"
    return Item(place, read, label, text, place, problem, beside, where.split, retry)


class _Labels:
    """Where the labels of all archives of a source come from: ``.cls``, a key of ``.json``, or the folders inside."""

    def __init__(self, where: str, listings: dict[File, Listing], wanted: Wanted) -> None:
        self._listings, self._wanted = listings, wanted
        self._read = cache(self._json)
        setting, caption = wanted.config.label_column, wanted.config.caption_column
        ends = {end for one in listings.values() for parts in one.samples.values() for end in parts}
        keys = self._keys() if ".json" in ends else []
        place = f"data.source webdataset:{where}: .json"
        self._end = (
            next((end for end in (setting, ".cls") if end and end.startswith(".") and end in ends), None) if setting != NONE else None
        )
        self._key = None if self._end else wanted.label(keys, place) if setting is None or not setting.startswith(".") else None
        self._text = ".txt" if ".txt" in ends and caption is None else caption if caption and caption.startswith(".") else None
        self._text_key = None if self._text else wanted.caption(keys, place) if keys else None
        if setting is not None and setting != NONE and self._end is None and self._key is None:
            raise ConfigError(f"data.label_column={setting!r}: no member of {where} ends so; there are {', '.join(sorted(ends))}")
        self.captioned = self._text is not None or self._text_key is not None
        self._places, self._shared = self._folders(where)
        self.how = self._told()

    def stamp(self, path: File) -> str:
        """What the samples of an archive depend on beside it: how labels are read, unless its own members say so."""
        if self._key is not None or self._text_key is not None or self._places is not None:
            return stamp_of(self._end, self._key, self._text_key, self._places)
        own = any(self._end in parts for parts in self._listings[path].samples.values())
        return "" if self._end is None or own else stamp_of(self._end)

    def _folders(self, where: str) -> tuple[Places | None, int]:
        """What the folders inside say, where nothing else does, and how many of them all members share."""
        folders = {path: {self._parents(key) for key in one.samples} for path, one in self._listings.items()}
        every = [each for mine in folders.values() for each in mine]
        if self._end or self._key or not any(every):
            return None, 0
        shared = 0
        while all(len(each) > shared for each in every) and len({each[shared] for each in every}) == 1:
            shared += 1
        tops = [{each[shared : shared + 1] for each in mine} for mine in folders.values()]
        one_each = len(tops) > 1 and all(len(mine) == 1 for mine in tops)
        numbered = {re.sub(r"[0-9]+", "#", "/".join(top)) for mine in tops for top in mine}
        if one_each and len(numbered) == 1:  # a folder an archive, numbered as archives are
            return None, 0
        inner = [each[shared:] for each in every]
        if self._wanted.config.label_column == NONE and not any(each[:1] for each in inner):
            return None, 0
        places = Places.found(inner, self._wanted, f"data.source webdataset:{where}")
        if self._wanted.config.label_column == NONE:
            places = Places(places.splits, False, places.how)
        return (places, shared) if places.splits or places.classed else (None, 0)

    def _told(self) -> str:
        label = f"labels from {self._end}" if self._end else f"labels from {self._key!r} of .json" if self._key else ""
        label = label or (self._places.how if self._places else "no labels")
        text = f"captions from {self._text}" if self._text else f"captions from {self._text_key!r} of .json" if self._text_key else ""
        return ", ".join(part for part in (label, text) if part)

    @staticmethod
    def _parents(key: str) -> tuple[str, ...]:
        return tuple(part for part in key.split("/")[:-1] if part not in ("", "."))

    def _keys(self) -> list[str]:
        """Keys of the ``.json`` members of the first samples."""
        found: dict[str, None] = {}
        for path, one in self._listings.items():
            for key in [key for key, parts in one.samples.items() if ".json" in parts][:100]:
                try:
                    found |= dict.fromkeys(self._read(path, key))
                except (ValueError, ReadError):
                    continue
        return list(found)

    def _content(self, path: File, at: At) -> bytes:
        known = self._listings[path].texts.get(at)
        return content(path, at) if known is None else known

    def _json(self, path: File, key: str) -> dict[str, Any]:
        parts = self._listings[path].samples[key]
        if ".json" not in parts:
            return {}
        try:
            value = json.loads(self._content(path, parts[".json"]))
        except ReadError:
            raise
        except ValueError as error:
            raise ValueError(f"its .json is damaged: {error}") from error
        if not isinstance(value, dict):
            raise ValueError("its .json holds no names with values")
        return value

    def place(self, path: File, key: str) -> Place:
        """Class and split of a sample.

        Raises:
            ValueError: a label that is none; ``ReadError``: it cannot be read.
        """
        parts = self._listings[path].samples[key]
        if self._end is not None:
            return Place(text_of(self._content(path, parts[self._end]), f"its {self._end}") if self._end in parts else None)
        if self._key is not None:
            value = self._read(path, key).get(self._key)
            if value is not None and not isinstance(value, (int, str)):
                raise ValueError(f"its label ({self._key!r} of .json) is neither a whole number nor a text: {value!r}")
            return Place(label_of(value))
        if self._places is not None:
            return self._places.of(self._parents(key)[self._shared :], printable(key), self._wanted)
        return Place(ONE_CLASS)

    def label(self, path: File, key: str) -> str | None:
        """Class of a sample, None where it has none that can be used."""
        try:
            label = self.place(path, key).label
        except (ValueError, ReadError):
            return None
        return label if label is None or storable(label) else None

    def caption(self, path: File, key: str) -> str | None:
        """Caption of a sample; raises ``ValueError`` where it is no text."""
        parts = self._listings[path].samples[key]
        if self._text is not None:
            return text_of(self._content(path, parts[self._text]), f"its {self._text}") if self._text in parts else None
        value = self._read(path, key).get(self._text_key) if self._text_key is not None else None
        if value is not None and not isinstance(value, str):
            raise ValueError(f"its caption ({self._text_key!r} of .json) is no text: {value!r}")
        return value


def members(where: str, path: File, further: tuple[str, ...] = ()) -> Listing:
    """What a tar file holds, by sample; what one elsewhere holds is remembered.

    Raises:
        ConfigError: it is compressed, cut short, or no tar file, or it cannot be read.
    """
    if isinstance(path, Far):
        return Listing.of(remembered(path, f"tar 1 {further}", lambda: _members(where, path, further).plain()))
    return _members(where, path, further)


def _members(where: str, path: File, further: tuple[str, ...]) -> Listing:
    plain: dict[str, At] = {}
    found = Listing()
    try:
        with opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or not safe_name(member.name):
                    found.bad.append((member.name, "unsafe member of the archive: not a plain file inside it"))
                    continue
                if member.name in plain:
                    found.bad.append((member.name, "another member of this name comes after it, which is used"))
                plain[member.name] = (member.offset_data, member.size)
                if isinstance(path, Far) and member.size <= _SMALL and member.name.lower().endswith(_TEXTS):
                    with archive.extractfile(member) as small:  # type: ignore[union-attr]
                        found.texts[plain[member.name]] = small.read()
    except ReadError as error:
        raise ConfigError(f"data.source webdataset:{where}: {path} {error}") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(f"data.source webdataset:{where}: {path} is not a whole, uncompressed tar file: {error}") from error
    _group(plain, further, found)
    return found


def _group(plain: dict[str, At], further: tuple[str, ...], found: Listing) -> None:
    """Sort members into samples: a name ends at its first dot, or, where nothing known follows that, at its last."""
    cut = {name: _first_dot(name) for name in plain}
    known = {*IMAGE_SUFFIXES, *_TEXTS, *further}
    with_image = {stem for stem, end in cut.values() if end in IMAGE_SUFFIXES}
    samples: defaultdict[str, dict[str, At]] = defaultdict(dict)
    for name, at in plain.items():
        stem, end = cut[name]
        if not stem.rpartition("/")[2] or not end:
            found.unused[end or printable(name.rpartition("/")[2])[:20]] += 1
            continue
        if end not in known and stem not in with_image:  # 22.05.jpg; beside x.jpg, x.mask.png is a part of x
            last = next((each for each in further if name.lower().endswith(each)), PurePosixPath(name).suffix)
            if last.lower() in known:
                stem, end = name[: -len(last)], last.lower()
        mine = samples[stem]
        if end in IMAGE_SUFFIXES and (first := next((each for each in mine if each in IMAGE_SUFFIXES), None)):
            found.bad.append((name, f"a second image of its sample, of which {first} is used"))
            continue
        if end not in known:
            found.unused[end] += 1
        mine[end] = at
    found.samples = dict(samples)


def _first_dot(name: str) -> tuple[str, str]:
    parent, slash, last = name.rpartition("/")
    stem, dot, end = last.partition(".")
    return parent + slash + stem, f".{end.lower()}" if dot else ""


def content(path: File, at: At) -> bytes:
    """Bytes of a file from an offset on; ``ValueError`` if it ends before, ``ReadError`` if it cannot be read."""
    with opened(path) as file:
        file.seek(at[0])
        data = file.read(at[1])
    if len(data) != at[1]:
        raise ValueError(f"{path} is cut short")
    return data
