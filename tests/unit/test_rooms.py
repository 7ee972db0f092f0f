"""Imports run one way: notebooks → pipelines → ediffi_core, and downwards within `pipelines/`."""

import ast
import json
from pathlib import Path

from paths import ROOT

LAYERS = ("ediffi_core", "pipelines", "notebooks")
ENCODERS = Path("ediffi_core/encoders.py")

FLOORS = (
    ("formatting", "layout", "metrics", "rgb"),
    ("demo", "spec", "store"),
    ("data", "features", "models"),
    ("dag",),
    ("runs",),
    ("planning", "training"),
    ("evaluation",),
    ("interchange", "reports", "steps"),
    ("studies",),
    ("lineage",),
    ("executor", "serving"),
    ("jobs", "studio"),
    ("cli",),
)
"""The rooms of `pipelines/`, from the ground up: each may import those below it, and no other."""

SHIMS = {"pipelines.pyfunc_model"}
"""Modules that stored results name: they import what has moved, and nobody imports them."""


def sources():
    """Every Python source of the three layers: modules, and notebooks' code cells."""
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
        for path in sorted((ROOT / layer).rglob("*.ipynb")):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
            lines = [
                s for s in "\n".join(code).splitlines() if not s.lstrip().startswith(("%", "!"))
            ]
            yield path.relative_to(ROOT), "\n".join(lines)


def imports(path, text):
    """Top-level names of all packages a source imports, inside functions and strings too."""
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path.parts[0] if node.level else node.module.split(".")[0]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value).split(".")[0]


SOURCES = list(sources())
MODULES = [(p, t) for p, t in SOURCES if p.suffix == ".py"]


def test_there_is_something_to_check():
    layers = {path.parts[0] for path, _ in SOURCES}
    assert {"ediffi_core", "pipelines"} <= layers
    assert ENCODERS in {path for path, _ in SOURCES}


def test_the_walk_sees_every_way_to_import():
    text = """
import ray.data as rd
from mlflow.tracking import MlflowClient
def f():
    import pyarrow.parquet
    from . import sibling
    importlib.import_module("open_clip.factory")
    __import__("transformers")
"""
    found = set(imports(Path("pipelines/x.py"), text))
    assert found == {"ray", "mlflow", "pyarrow", "pipelines", "open_clip", "transformers"}


def test_layers_import_downwards_only():
    refused = {
        layer: {*LAYERS[i + 1 :], "tests", *(("ray", "mlflow", "pyarrow") if i == 0 else ())}
        for i, layer in enumerate(LAYERS)
    }
    found = {str(p): refused[p.parts[0]] & set(imports(p, t)) for p, t in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


def test_only_the_encoders_import_encoder_libraries():
    users = {p for p, t in MODULES if {"transformers", "open_clip"} & set(imports(p, t))}
    assert {p for p in users if p.parts[0] == "ediffi_core"} == {ENCODERS}


def test_one_module_imports_diffusers_and_none_imports_it():
    users = {p for p, t in MODULES if "diffusers" in t and "diffusers" in imports(p, t)}
    assert users == {Path("ediffi_core/diffusers_pipeline.py")}
    assert not [p for p, t in MODULES if "import diffusers_pipeline" in t]


def test_the_encoders_import_them_when_asked_only():
    (text,) = [t for p, t in MODULES if p == ENCODERS]
    top = [n for n in ast.parse(text).body if isinstance(n, ast.Import | ast.ImportFrom)]
    module = ast.unparse(ast.Module(body=top, type_ignores=[]))
    assert not {"transformers", "open_clip"} & set(imports(ENCODERS, module))


def test_files_stay_short():
    lengths = {str(p): len(t.splitlines()) for p, t in MODULES}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}


# -- rooms ---------------------------------------------------------------------------------------

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def module_of(path):
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_of(p): t for p, t in MODULES if p.parts[0] == "pipelines"}


def imported_modules(name, text):
    """The modules of `pipelines/` that one imports, wherever in it, for types as well."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in NAMES)
        elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES else node.module


ARROWS = {name: set(imported_modules(name, text)) - {name} for name, text in NAMES.items()}


def room(module):
    return module.split(".")[1] if "." in module else ""


def test_every_module_has_a_room():
    rooms = {room(m) for m in NAMES if m not in SHIMS} - {""}
    assert rooms == set(FLOOR_OF)


def test_rooms_import_downwards_only():
    up = [
        f"{module} (floor {FLOOR_OF[room(module)]}) → {other} (floor {FLOOR_OF[room(other)]})"
        for module, others in ARROWS.items()
        for other in others
        if module not in SHIMS and room(module) != room(other)
        if FLOOR_OF[room(module)] <= FLOOR_OF[room(other)]
    ]
    assert up == []


def test_no_modules_import_each_other_in_a_circle():
    """Not even by way of imports inside functions or for types."""
    order, path = [], []

    def visit(module):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module in order:
            return
        path.append(module)
        for other in sorted(ARROWS[module]):
            visit(other)
        order.append(path.pop())

    for module in sorted(ARROWS):
        visit(module)


def test_nobody_imports_what_is_kept_for_stored_results():
    assert {m: others & SHIMS for m, others in ARROWS.items() if others & SHIMS} == {}


def test_the_walk_sees_a_circle_and_an_arrow_up():
    assert "pipelines.dag.plan" in ARROWS["pipelines.executor.runner"]
    assert "pipelines.spec.pipeline" in ARROWS["pipelines.dag.plan"]
