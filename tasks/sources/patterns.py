"""Files of a pattern, here or elsewhere: ``*``, ``**``, ``{000..009}`` and ``{a,b}``, or all of a kind in a folder."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import looked, natural
from tokenloom.tasks.data.reading import ReadError, attempted, said
from tokenloom.tasks.sources.far import LISTED, Far, Place, again, below

_MAGIC = re.compile(r"[*?\[]")


def matches(pattern: str, what: str, ends: tuple[str, ...]) -> list[Place]:
    """The files of a pattern, or those of these ends in a folder.

    Raises:
        ConfigError: nothing matches, or a part of ``{…}`` does not.
    """
    if re.match(r"(s3|gs|https?|hf)://", pattern):
        try:
            return list(attempted(lambda: _elsewhere(pattern, what, ends)))
        except ReadError as error:
            raise ConfigError(f"data.source {what}:{pattern}: cannot be looked at: {said(error)}") from error
    return list(_here(pattern, what, ends))


def _here(pattern: str, what: str, ends: tuple[str, ...]) -> list[Path]:
    where = os.path.expanduser(pattern)
    if os.path.isdir(where):
        paths = sorted((path for end in ends for path in glob.glob(f"{glob.escape(where)}/**/*{end}", recursive=True)), key=natural)
        if not paths:
            raise ConfigError(f"data.source {what}:{pattern}: the folder holds no file that ends in {' or '.join(ends)}")
        return [Path(path).absolute() for path in paths]
    found: dict[Path, None] = {}
    missing = []
    for each in [where] if os.path.isfile(where) else braces(where):
        matched = [path for path in sorted(glob.glob(each, recursive=True), key=natural) if os.path.isfile(path)]
        matched = matched or ([each] if os.path.isfile(each) else [])
        missing += [] if matched else [each]
        found |= dict.fromkeys(Path(path).absolute() for path in matched)
    _refuse(pattern, what, list(found), missing, looked(pattern))
    return list(found)


def _refuse(pattern: str, what: str, found: Sequence[Place], missing: list[str], where: str = "") -> None:
    if missing and found:
        raise ConfigError(f"data.source {what}:{pattern}: {len(missing)} of its files are not there (first: {missing[0]})")
    if not found:
        raise ConfigError(f"data.source {what}:{pattern}: no file matches{where}")


def _elsewhere(pattern: str, what: str, ends: tuple[str, ...]) -> list[Far]:
    found: dict[Far, Far] = {}
    missing = []
    plain: list[Far] = []
    for each in braces(pattern):
        address = Far.parse(each)
        # A question mark of https is the beginning of its query.
        magic = _MAGIC.search(address.path) if address.scheme in LISTED else re.search(r"\*", address.path)
        if magic:
            fixed = Far(address.scheme, address.path[: magic.start()].rpartition("/")[0], address.anonymous)
            wanted = re.compile(_regular(address.path))
            matched = [file for file in below(fixed) if wanted.fullmatch(file.path)]
            missing += [] if matched else [each]
            found |= {file: file for file in sorted(matched, key=lambda file: natural(file.path))}
        else:
            plain.append(address)
    states = again(plain)
    if len(plain) == 1 and states == [None] and plain[0].scheme in LISTED and not found:
        inside = [file for file in below(plain[0]) if file.name.endswith(ends)]
        if inside:
            return sorted(inside, key=lambda file: natural(file.path))
        raise ConfigError(f"data.source {what}:{pattern}: no such file, and no folder with one that ends in {' or '.join(ends)}")
    missing += [str(address) for address, file in zip(plain, states) if file is None]
    found |= {file: file for file in states if file is not None}
    _refuse(pattern, what, list(found), missing)
    return list(found)


def _regular(pattern: str) -> str:
    """A regular expression of a pattern with ``*``, ``**/``, ``?`` and ``[…]``."""
    made, at = "", 0
    while at < len(pattern):
        rest = pattern[at:]
        if rest.startswith("**/"):
            made, at = made + "(?:[^/]+/)*", at + 3
        elif rest.startswith("**"):
            made, at = made + ".*", at + 2
        elif (group := re.match(r"\[!?[^\]]+\]", rest)) is not None:
            made, at = made + group[0].replace("[!", "[^"), at + len(group[0])
        else:
            made, at = made + {"*": "[^/]*", "?": "[^/]"}.get(rest[0], re.escape(rest[0])), at + 1
    return made


def braces(pattern: str) -> list[str]:
    """A pattern with its braces written out, as a shell does: ``{000..009}`` and ``{a,b}``."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", match[1])
    if span is None and "," not in match[1]:
        return [pattern]
    if span is None:
        parts = match[1].split(",")
    else:
        first, last, width = int(span[1]), int(span[2]), len(span[1]) if span[1].startswith("0") else 0
        parts = [f"{number:0{width}d}" for number in range(first, last + 1)]
    return [each for part in parts for each in braces(pattern[: match.start()] + part + pattern[match.end() :])]
