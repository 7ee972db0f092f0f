"""The operators' pages name files, folders and commands that there are."""

import re

import pytest
from commands import in_markdown, understood
from manifests import FOLDERS, ROOT

INFRA = ROOT / "infra"
PAGES = [INFRA / "README.md", *sorted((INFRA / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[p.stem for p in PAGES])
def test_every_command_of_ours_exists(page, monkeypatch):
    for name, value in re.findall(r"^export (\w+)=(\S+)", page.read_text(), flags=re.M):
        monkeypatch.setenv(name, value)
    for words in in_markdown(page.read_text()):
        understood(words)


@pytest.mark.parametrize("page", PAGES, ids=[p.stem for p in PAGES])
def test_every_link_and_folder_exists(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for place in re.findall(r"\b(?:infra|pipelines|tests)/[\w./-]+[\w-]", text):
        assert place == "infra/.env" or (ROOT / place).exists(), place


def test_every_folder_is_told_of():
    shown = set(re.findall(r"^k8s/(\S+) {2,}\S", (INFRA / "README.md").read_text(), flags=re.M))
    assert shown == set(FOLDERS)


def test_there_is_a_page_for_each_task():
    assert {p.stem for p in PAGES[1:]} == {"run", "submit", "schedule", "recover", "upgrade"}
