"""Several sources as one: each with its weight, which says how often its rows are drawn in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tokenloom.configs.schema import DataConfig
from tokenloom.tasks.data.listing import Entry, Item, Source, natural

_OWN = ("columns", "image_column", "label_column", "caption_column", "split_column", "splits", "hub")


def blend_source(config: DataConfig, open_part: Callable[[DataConfig], Source]) -> Source:
    """The parts of ``data.blend`` together: a class of one name is one class, and keys begin with the name of their part."""
    assert config.blend is not None
    parts: dict[str, Source] = {}
    for name, part in config.blend.items():
        own = {field: getattr(part, field) for field in _OWN if getattr(part, field) is not None}
        parts[name] = open_part(config.model_copy(update={"source": part.source, "blend": None, "hub": None, **own}))
    owner: dict[str, tuple[str, Entry]] = {}
    entries = []
    for name, source in parts.items():
        for entry in source.entries:
            entries.append(replace(entry, name=f"{name}/{entry.name}"))
            owner[entries[-1].name] = name, entry

    def items(entry: Entry) -> Iterator[Item]:
        name, own = owner[entry.name]
        for item in parts[name].items(own):
            place = entry.name if item.source == own.name else item.source
            caption = parts[name].caption(item, config.captions) if config.captions != "source" else item.caption
            yield replace(item, key=f"{name}/{item.key}", source=place, caption=caption)

    def digest(entry: Entry) -> str:
        name, own = owner[entry.name]
        return parts[name].digest(own)

    def check() -> None:
        for source in parts.values():
            source.check()

    return Source(
        classes=tuple(sorted({each for source in parts.values() for each in source.classes}, key=natural)),
        entries=tuple(entries),
        items=items,
        digest=digest,
        single=all(source.single for source in parts.values()),
        check=check,
        captioned=any(source.captioned for source in parts.values()),
        names={label: text for source in parts.values() for label, text in source.names.items()},
        phrases={label: text for source in parts.values() for label, text in source.phrases.items()},
        how="; ".join(f"{name} (weight {config.blend[name].weight:g}): {source.how}" for name, source in parts.items()),
        parts=tuple((name, all(turns for _, turns in source.parts)) for name, source in parts.items()),
    )
