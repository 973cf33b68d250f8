"""The layers hold: imports go down only, and some modules run where little is installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["models", "configs", "tasks", "flows"]  # each may import itself and what stands before it
FILES = {layer: sorted((ROOT / layer).rglob("*.py")) for layer in LAYERS}
#: What a layer may import from outside: models only these, flows anything but torch.
MODELS_MAY = {"torch", "numpy", "safetensors"} | set(sys.stdlib_module_names)
BARE_MODULES = ("tokenloom.models", "tokenloom.tasks.training.train_loop", "tokenloom.tasks.data.loader", "tokenloom.tasks.data.tokens")
NOT_BARE = ("ray", "prefect", "mlflow", "boto3", "pydantic", "datasets", "PIL", "matplotlib", "sklearn", "scipy", "rich", "click", "pandas")


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at any depth, as full dotted names; ours without ``tokenloom.``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
    return {name.removeprefix("tokenloom.") for name in found}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_down_only(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for path in FILES[layer]:
        wrong = {name for name in imports(path) if name.split(".")[0] in above}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)} from a layer above"


def test_models_import_torch_alone() -> None:
    for path in FILES["models"]:
        wrong = {n for n in imports(path) if n.split(".")[0] not in MODELS_MAY | {"models"}}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def graph() -> dict[str, set[str]]:
    """Every module of ours with those of ours that it imports, at any depth: within functions and for types only, too."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for layer in LAYERS for p in FILES[layer]}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
        within = {f"{node.module}.{alias.name}".removeprefix("tokenloom.") for node in nodes for alias in node.names}
        wanted = {other if other in names else other.rpartition(".")[0] for other in within} | imports(path)
        # a package that is imported for one of its modules does not count as imported itself
        packages = {str(node.module).removeprefix("tokenloom.") for node in nodes} - {o.rpartition(".")[0] for o in within - names.keys()}
        found[name] = (wanted - packages) & names.keys() - {name}
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, however indirectly."""
    left = {name: set(needs) for name, needs in edges.items()}
    while done := [name for name, needs in left.items() if not needs & left.keys()]:  # what depends on nothing that is left
        for name in done:
            del left[name]
    while done := [name for name in left if not any(name in needs for needs in left.values())]:  # what nothing left depends on
        for name in done:
            del left[name]
    return [sorted(left)] if left else []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(graph()) == []


def test_a_circle_is_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set(), "e": {"d"}}
    assert circles(edges) == [["b", "c"]]
    assert circles(edges | {"c": {"d"}}) == []


#: Modules of a folder; folders of methods and of official families grow with what there is.
MOST, ENDLESS = 20, {f"models/{name}" for name in ("zoo/generators", "zoo/tokenizers", "zoo/densities", "zoo/published", "pretrained")}


def test_folders_can_be_overlooked() -> None:
    folders = Counter(str(path.parent.relative_to(ROOT)) for layer in LAYERS for path in FILES[layer] if path.name != "__init__.py")
    assert not {folder: n for folder, n in folders.items() if n > MOST and folder not in ENDLESS}


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for layer in LAYERS for path in FILES[layer]}
    assert not [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()], "setup.py would leave it out of the wheel"


#: Rooms of models: each may import itself and what stands before it. The first has what core's contracts name.
ROOMS = (
    (
        "core",
        "sampling.sampler",
        "sampling.head_sampler",
        "sampling.filters",
        "sampling.decoders.base",
        "parts.orders.sizes",
        "parts.orders.visits",
    ),
    ("parts",),
    ("sampling",),
    ("objectives",),
    ("generators", "tokenizers"),
    ("zoo",),
    ("pretrained",),
)
#: They look up what any room defines.
LOOK_UP = {"models.core.registry": {"models.zoo"}, "models.core.build": {"models.pretrained"}}


def height(name: str) -> int:
    """Which room a module below ``models`` is in."""
    return min((i for i, rooms in enumerate(ROOMS) for room in rooms if f"{name}.".startswith(f"models.{room}.")), default=len(ROOMS))


def test_imports_within_models_go_down_only() -> None:
    for name, needs in graph().items():
        if name.startswith("models."):
            above = sorted(other for other in needs if other.startswith("models.") and height(other) > height(name))
            assert set(above) <= LOOK_UP.get(name, set()), f"{name} imports {above} from a room above"


#: Rooms of tasks and flows, as above; a module that stands elsewhere than its folder is named by itself.
UPPER = {
    "tasks": (
        ("runtime.errors", "runtime.progress", "runtime.surroundings", "data.reading"),
        ("store",),
        ("runtime", "tracking", "serving", "modalities", "data.listing", "sources"),
        ("data",),
        ("making",),
        ("training", "costs", "runtime.checks"),
        ("evaluation",),
        ("modalities.image", "modalities.series", "tracking.model_card"),
        ("data.ingest", "data.extract", "training.distributed", "evaluation.evaluate", "tracking.register", "training.warm_start"),
        ("steps",),
    ),
    "flows": (
        ("environment", "guard", "axes", "costs", "planning", "screen"),
        ("workspace",),
        ("results", "steps", "sweep"), ("pages",), ("pipeline",), ("prefect_api",),
        ("cli", "batch_node"),
    ),
}  # fmt: skip


def level(layer: str, name: str) -> int | None:
    """The room of a module of tasks or flows: that of the longest name that it begins with."""
    fitting = [(len(room), i) for i, rooms in enumerate(UPPER[layer]) for room in rooms if f"{name}.".startswith(f"{layer}.{room}.")]
    return max(fitting)[1] if fitting else None


@pytest.mark.parametrize("layer", UPPER)
def test_imports_within_tasks_and_flows_go_down_only(layer: str) -> None:
    modules = {name: needs for name, needs in graph().items() if name.startswith(f"{layer}.")}
    levels = {name: level(layer, name) for name in modules}
    assert not [name for name, found in levels.items() if found is None], "a new room: say where it stands"
    for name, needs in modules.items():
        above = sorted(other for other in needs & modules.keys() if levels[other] > levels[name])  # type: ignore[operator]
        assert not above, f"{name} imports {above} from a room above"


#: Neutral rooms reach what knows an image through the interface of its kind alone. Records without a kind are of images.
OF_IMAGES, EXEMPT = (
    ("image", "pixel", "png", "jpeg", "rgb", "grey"),
    {("tasks/modalities/__init__.py", "image"), ("tasks/store/official.py", "image")},
)


def names(path: Path) -> set[str]:
    """Every name that a file defines or uses: functions, classes, arguments, variables, attributes."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    return {str(name) for node in nodes for field in ("id", "attr", "arg", "name") if isinstance(name := getattr(node, field, None), str)}


def test_only_its_room_knows_what_an_image_is() -> None:
    kinds = ROOT / "tasks" / "modalities"
    for path in FILES["tasks"]:
        room = path.relative_to(kinds).parts[0] if path.is_relative_to(kinds) else ""
        others = [f"tasks.modalities.{kind.name}" for kind in kinds.iterdir() if kind.is_dir() and kind.name != room]
        wrong = [n for n in imports(path) for other in (*others, "PIL") if f"{n}.".startswith(f"{other}.") and room != "image"]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: ask the kind's MODALITY (tasks/modalities/base.py)"
        where = str(path.relative_to(ROOT))
        known = {n for n in names(path) if any(word in n.lower() for word in OF_IMAGES)} - {n for file, n in EXEMPT if file == where}
        assert room == "image" or not known, f"{where} knows {sorted(known)}: that belongs into tasks/modalities/image"


def test_flows_do_not_import_torch() -> None:
    for path in FILES["flows"]:
        assert "torch" not in {n.split(".")[0] for n in imports(path)}, path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("library", "doors"),
    [("mlflow", ["tracking/*"]), ("boto3", ["store/storage", "store/conditional", "runtime/batch"]), ("ray", ["runtime/cluster"])],
)
def test_libraries_have_one_door(library: str, doors: list[str]) -> None:
    # Ray's own API (actors, Train) may be used by the steps that run on it; sessions are opened at the door only.
    allowed = {
        path for door in (*doors, "store/leases", "serving/*", "modalities/*/served/*") for path in (ROOT / "tasks").glob(f"{door}.py")
    }
    for layer in LAYERS:
        for path in FILES[layer]:
            if path in allowed:
                continue
            text = path.read_text()
            if library == "ray":
                assert "ray.init(" not in text, path.relative_to(ROOT)
            else:
                assert library not in {n.split(".")[0] for n in imports(path)}, path.relative_to(ROOT)


def test_bare_modules_load_nothing_heavy() -> None:
    code = f"import sys\nimport {', '.join(BARE_MODULES)}\nprint([m for m in {NOT_BARE!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_no_unsafe_or_device_bound_calls() -> None:
    banned = ("torch.hub", "pickle.load", ".cuda()", "weights_only=False")
    for layer in LAYERS:
        for path in FILES[layer]:
            text = path.read_text()
            assert not [b for b in banned if b in text], path.relative_to(ROOT)
            if "yaml.load(" in text:  # only with a loader that is a SafeLoader
                assert re.findall(r"yaml\.load\((.*)\)", text) == ["text, _Loader"], path.relative_to(ROOT)
                assert "class _Loader(yaml.SafeLoader)" in text, path.relative_to(ROOT)


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for layer in LAYERS for p in FILES[layer] if (n := len(p.read_text().splitlines())) > 330}
    assert not long, long
