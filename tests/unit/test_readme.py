"""What the project's pages say holds: commands parse, specs plan, links and files exist."""

import copy
import os
import re
import shutil
import subprocess
import sys

import pytest
import typer
import yaml
from commands import ELSEWHERE, blocks, commands, exists, in_markdown, in_prose, targets, understood
from paths import ROOT
from test_rooms import FLOORS

from pipelines.cli.verbs import app
from pipelines.dag import plan, sources
from pipelines.planning import lint
from pipelines.spec.pipeline import Spec
from pipelines.store.artifacts import Store
from pipelines.studies.cells import open_study

PAGES = sorted(
    page
    for place in ("*.md", "*/README.md", "*/docs/*.md")
    for page in ROOT.glob(place)
    if page.relative_to(ROOT).parts[0] not in ("build", "ediffi-store")
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
README = (ROOT / "README.md").read_text()
WHOLE = (ROOT / "pipelines/docs/data.md").read_text()
"""The page with the spec that the parts of a spec on all pages belong to."""

RESULTS = ROOT / "tests/benchmarks/RESULTS.md"
"""Printed by scripts: its blocks are output."""

each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def test_all_pages_are_found():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {*NAMES}
    rooms = ("ediffi_core", "pipelines", "notebooks", "infra")
    assert {f"{room}/README.md" for room in rooms} <= {*NAMES}
    topics = ("demo", "data", "training", "control", "evaluation", "promotion")
    assert {f"pipelines/docs/{topic}.md" for topic in topics} <= {*NAMES}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


# -- commands ------------------------------------------------------------------------------------


def verbs():
    """Every verb of the command line, those of groups with the group's name."""
    found = typer.main.get_command(app).commands
    inner = {f"{name} {verb}" for name, c in found.items() for verb in getattr(c, "commands", ())}
    return {name for name, c in found.items() if not hasattr(c, "commands")} | inner


@each_page
def test_every_command_exists(page, monkeypatch):
    text = page.read_text()
    for name, value in re.findall(r"^export (\w+)=(\S+)", text, flags=re.M):
        monkeypatch.setenv(name, value)
    known = {"", ELSEWHERE, "bash", "text", "yaml", "python"}
    assert {block.info for block in blocks(text)} <= known
    for line in commands(text):
        exists(line)
    for words in in_markdown(text):
        understood(words)


@each_page
def test_every_verb_and_target_in_prose_exists(page):
    text = page.read_text()
    assert in_prose(text) <= verbs()
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets()


def test_the_readme_s_table_has_every_verb():
    [table] = re.findall(r"^\| task \| verbs \|\n(.*?)\n\n", README, flags=re.M | re.S)
    shown = re.findall(r"`(?:ediffi )?((?:data |study )?[a-z]+)", table.replace("`make ui`", ""))
    assert sorted(shown) == sorted(verbs())


@pytest.mark.parametrize(
    "line",
    ["ediffi sing", "ediffi run", "ediffi tree --loud", "make coffee", "make test LOUD=1", "ls"],
)
def test_a_command_that_does_not_exist_is_found(line):
    usage = typer.BadParameter.__base__
    with pytest.raises((AssertionError, KeyError, usage)):
        exists(line)


# -- specs ---------------------------------------------------------------------------------------


def documents(page):
    """The YAML blocks of a page."""
    return [yaml.safe_load(b.text) for b in blocks(page.read_text()) if b.info == "yaml"]


SPECS = [
    pytest.param(raw, id=f"{name}-{i}")
    for page, name in zip(PAGES, NAMES)
    for i, raw in enumerate(documents(page))
    if "study" not in raw
]
STUDIES = [raw for page in PAGES for raw in documents(page) if "study" in raw]
[BASE] = [yaml.safe_load(b.text) for b in blocks(WHOLE) if b.text.startswith("name: ")]


def merged(base, part):
    """The base with a part laid over it, mapping by mapping."""
    if not (isinstance(base, dict) and isinstance(part, dict)):
        return part
    return base | {k: merged(base[k], v) if k in base else v for k, v in part.items()}


def whole(raw):
    """A spec on a page, or a part of one laid over the spec that the pages share."""
    if "name" in raw:
        return copy.deepcopy(raw)
    raw, base = copy.deepcopy(raw), copy.deepcopy(BASE)
    for stage, part in raw.get("stages", {}).items():
        if "network" in part:  # a network of its own takes the place of a preset
            del base["stages"][stage]["network"]
        if "adaptive" in part:  # decides on the experts itself
            del base["stages"][stage]["experts"], base["stages"][stage]["ensemble"]
    return merged(base, raw)


@pytest.mark.parametrize("raw", SPECS)
def test_every_spec_plans(raw):
    """Without its data, which is not here: as many pairs as may be."""
    raw = whole(raw)
    for split in raw["data"].values():
        split["pairs"] = 1_024_000
    spec = Spec.model_validate(raw)
    found = sources.identify_all(spec, assume=True)
    made = plan.make(spec, Store.at(os.devnull), found)
    assert [str(f) for f in lint.check(spec, made) if f.is_error] == []
    assert {v.node.kind for v in made.verdicts.values()} >= {"embed", "train"}


@pytest.mark.parametrize("raw", STUDIES, ids=[raw["study"] for raw in STUDIES])
def test_every_study_opens(raw, tmp_path):
    shutil.copy(ROOT / "pipelines/specs" / raw["base"], tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    assert len(open_study(tmp_path / "study.yaml").cells) > 1


def test_the_specs_of_the_pages_are_there():
    assert STUDIES
    assert len(SPECS) >= 10
    assert sum("name" in p.values[0] for p in SPECS) >= 2


# -- Python --------------------------------------------------------------------------------------


@each_page
def test_every_python_block_compiles(page):
    for block in blocks(page.read_text()):
        if block.info == "python":
            compile(block.text, str(page), "exec")


@pytest.mark.slow
def test_the_core_s_example_learns_what_it_says(tmp_path):
    [example] = [
        block.text
        for block in blocks((ROOT / "ediffi_core/README.md").read_text())
        if block.info == "python"
    ]
    done = subprocess.run(
        [sys.executable, "-c", example],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    dark, bright = map(float, re.findall(r"-?\d\.\d+", done.stdout.splitlines()[-1]))
    assert -0.8 < dark < -0.2 < 0.2 < bright < 0.8


# -- links and files -----------------------------------------------------------------------------


def anchors(page):
    """The ids that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", [*PAGES, RESULTS], ids=[*NAMES, "RESULTS.md"])
def test_every_link_and_picture_exists(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_every_file_that_is_named_exists(page):
    named = r"\b(?:infra|pipelines|tests|notebooks)/[\w./-]+[\w-]"
    text = re.sub(r"\]\([^)]+\)", "]", page.read_text())
    for place in re.findall(named, text):
        made = place in ("infra/.env", "pipelines/steps/KIND.py")
        assert made or (ROOT / place).exists(), place


def test_the_map_shows_every_folder():
    shown = set(re.findall(r"^(\w+)/  ", README, flags=re.M))
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert rooms | {"infra", "notebooks", "tests"} == shown


def test_the_map_shows_every_room():
    rooms = {p.parent.name for p in ROOT.glob("pipelines/*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/  ", README, flags=re.M)) == rooms | {"specs"}


def test_the_guide_shows_the_floors():
    guide = (ROOT / "pipelines/README.md").read_text()
    shown = re.findall(r"^\| (\d+) \| (`.*?`) \|", guide, flags=re.M)
    rooms = {(int(n), room) for n, names in shown for room in re.findall(r"\w+", names)}
    assert rooms == {(n, room) for n, floor in enumerate(FLOORS, 1) for room in floor}


def test_every_notebook_is_described():
    guide = (ROOT / "notebooks/README.md").read_text()
    notebooks = {p.name for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"\((\w+\.ipynb)\)", guide)) == notebooks


def test_the_core_s_map_shows_every_module():
    guide = (ROOT / "ediffi_core/README.md").read_text()
    there = {p.name for p in (ROOT / "ediffi_core").glob("*.py")} - {"__init__.py"}
    assert there <= set(re.findall(r"\((\w+\.py)\)", guide))
