"""ediffi_core imports with torch, numpy and safetensors only."""

import subprocess
import sys
from pathlib import Path

import pytest

import ediffi_core

SCRIPT = """
import importlib, pkgutil, sys
sys.path.insert(0, {root!r})
BLOCKED = {blocked!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
for name in BLOCKED:
    try:
        importlib.import_module(name)
    except ImportError as error:
        assert "is blocked" in str(error)
    else:
        raise AssertionError(f"{{name}} was not blocked")

import ediffi_core
names = [m.name for m in pkgutil.walk_packages(ediffi_core.__path__, "ediffi_core.")]
names.remove("ediffi_core.diffusers_pipeline")  # for those who have diffusers
for name in names:
    importlib.import_module(name)
print(" ".join(names))
"""
BLOCKED = (
    *("ray", "mlflow", "pyarrow", "transformers", "open_clip", "pipelines", "pandas", "PIL"),
    "diffusers",
)


@pytest.mark.slow
def test_every_module_imports_without_the_pipeline_s_packages():
    root = str(Path(ediffi_core.__file__).parents[1])
    script = SCRIPT.format(root=root, blocked=BLOCKED)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    package = Path(ediffi_core.__file__).parent
    files = {p.relative_to(package.parent).with_suffix("") for p in package.rglob("*.py")}
    expected = {".".join(f.parts) for f in files if f.name != "__init__"}
    expected.remove("ediffi_core.diffusers_pipeline")
    assert expected <= imported
    assert len(expected) >= 14
