"""What is known after ingest is told then, before anything is trained, with what helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import config, two_classes
from toy_runs import run, source_fixture  # noqa: F401

from tokenloom.configs.load import build
from tokenloom.configs.schema import RunConfig
from tokenloom.flows import planning
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.matching import split_of
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.steps.base import Context
from tokenloom.tasks.steps.ingest import INGEST
from tokenloom.tasks.store.artifacts import Store


def refused(settings: RunConfig, store: Store, match: str) -> None:
    """The run is refused when ingest ends, and again when its dataset is there."""
    with pytest.raises(ConfigError, match=match):
        INGEST.run(Context(settings, store), {})
    planned = planning.plan(settings, store)
    assert planned[0].status == "cached"
    with pytest.raises(ConfigError, match=match):
        planning.check(settings, store, planned)


def test_too_few_held_out_images(source: Path, store: Store) -> None:
    few = "data.validation=0.3: [0-9]+ held-out images of [0-9]+ are too few to judge by, 32 are needed .evaluate.neighbours=30.; "
    refused(run(source, "evaluate.neighbours=30", "evaluate.samples=40"), store, few + "raise data.validation, or add data")
    held = [path for path in source.rglob("*.png") if split_of(path.relative_to(source).as_posix(), run(source).data) == "validation"]
    for path in held[1:]:
        path.write_bytes(b"?")
    refused(run(source), store, rf"1 held-out .*; rejected were {len(held) - 1} x corrupt or unreadable.*; mend or replace those")


def test_a_split_that_rejects_leave_empty(source: Path, store: Store) -> None:
    settings = run(source)
    for path in source.rglob("*.png"):
        if split_of(path.relative_to(source).as_posix(), settings.data) == "validation":
            path.write_bytes(b"?")
    with pytest.raises(
        ConfigError, match=r"leave the validation split empty .*; rejected were [0-9]+ x corrupt or unreadable.* \(first: .*png\)"
    ):
        INGEST.run(Context(settings, store), {})
    assert not store.records()


def test_a_class_that_rejects_leave_empty(store: Store, tmp_path: Path) -> None:
    images = two_classes(tmp_path)
    for path in (images / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StepError, match=r"class 'cat' .* has no usable image: repair or remove it \(10 x corrupt or unreadable"):
        ingest("pets", config(f"folder:{images}"), store)


def test_fewer_samples_than_classes(source: Path, store: Store) -> None:
    for i in range(12):
        for j in range(3):
            target = source / f"more{i}" / f"{j}.png"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(next(source.rglob("0*.png")).read_bytes())
    refused(run(source), store, "evaluate.samples=10: fewer than the 14 classes .*; give at least 14")


def test_a_caption_that_the_generator_cannot_read_is_named_by_its_image(source: Path, store: Store) -> None:
    for path in source.rglob("*.png"):
        path.with_suffix(".txt").write_text("a picture" + " and more" * (path.name == "007.png"))
    texted = {"condition": {"characters": {"length": 12}}}
    document = run(source).model_dump(mode="json", by_alias=True)
    document["generator"]["set"] = texted
    settings = build(RunConfig, document, (), "test")
    refused(settings, store, r"dark/007\.png: its caption has 18 bytes, and the generator reads 12: shorten it, or raise length")
    document["generator"]["set"] = {"condition": {"characters": {"length": 18}}}
    INGEST.check(Context(build(RunConfig, document, (), "test"), store), dict(zip(["dataset"], planning.plan(settings, store))))
