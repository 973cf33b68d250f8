"""The pages are true: the method table, the sizes, the trees, the links, the commands that they name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    for page in readme.PAGES:
        # The published sizes are held row by row in test_sizes.py.
        assert readme.refreshed(page, without="published") == (ROOT / page).read_text(), f"{page}: run `make readme`"


def test_the_readme_stays_short_and_names_ten_methods() -> None:
    assert len(README.splitlines()) <= 120
    from tokenloom.models.core import registry

    named = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert len(named) == 10
    assert set(named) <= set(registry.names())


def test_the_glossary_says_each_term_once_in_one_sentence() -> None:
    rows = re.findall(r"^\| (?!term|---)(.+?) \| (.+) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    terms = [term for term, _ in rows]
    assert len(rows) > 60
    assert len(set(terms)) == len(terms)
    assert [text for _, text in rows if not re.fullmatch(r"[A-Z].*[^.]\.", text) or re.search(r"\. [A-Z]", text)] == []


def test_the_glossary_has_every_axis_kind_and_artifact() -> None:
    from tokenloom.models.core.config import AXES
    from tokenloom.models.core.registry import KINDS
    from tokenloom.tasks.store.records import KINDS as ARTIFACTS

    page = (ROOT / "docs" / "glossary.md").read_text().lower()
    for word in {*AXES, *KINDS, *ARTIFACTS}:
        assert word in page, word


def test_links_inside_the_project_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_commands_exist() -> None:
    from tokenloom.flows.cli.main import cli

    commands = set(cli.list_commands(None))  # type: ignore[arg-type]
    for page in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for command in re.findall(r"\btokenloom ([a-z]+)\b", page):
            assert command in commands, f"`tokenloom {command}` is not a command"


def test_options_exist() -> None:
    import click

    from tokenloom.flows.cli.main import cli

    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name, rest in re.findall(r"\btokenloom ([a-z]+)\b([^`\n#|]*)", page.read_text()):
            command = cli.get_command(click.Context(cli), name)
            assert command is not None
            there = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= there, f"{page.name}: tokenloom {name}{rest}"


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, re.MULTILINE))
    named = {name for pair in named for name in pair if name}
    assert named <= targets
    assert {"demo", "test"} <= named


def test_runs_and_files_named_exist() -> None:
    for run in re.findall(r"configs/runs/\w+\.yaml", README):
        assert (ROOT / run).exists(), run
