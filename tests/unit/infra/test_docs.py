"""The operators' pages name every folder; tests/unit/test_readme.py checks the rest of them."""

import re

import pytest
from manifests import FOLDERS, ROOT

from pipelines.executor import outlook
from pipelines.serving import meters

INFRA = ROOT / "infra"
TASKS = {"run", "submit", "schedule", "serve", "recover", "upgrade"}
TOPICS = {"clusters", "watch", "record", "storage", "cost", "security"}


def test_every_folder_is_described():
    shown = set(re.findall(r"^k8s/(\S+) {2,}\S", (INFRA / "README.md").read_text(), flags=re.M))
    assert shown == set(FOLDERS)


def test_there_is_a_page_for_each_task_and_topic():
    assert {p.stem for p in (INFRA / "docs").glob("*.md")} == TASKS | TOPICS
    links = set(re.findall(r"\(docs/(\w+)\.md\)", (INFRA / "README.md").read_text()))
    assert links == TASKS | TOPICS


@pytest.mark.parametrize(
    ("page", "declared"), [("serve", meters.METRICS), ("watch", outlook.METRICS)]
)
def test_the_metrics_are_listed(page, declared):
    text = (INFRA / "docs" / f"{page}.md").read_text()
    rows = re.findall(r"^\| `(ediffi_\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", text, flags=re.M)
    shown = {row[0]: (row[1], tuple(re.findall(r"\w+", row[2])), row[3]) for row in rows}
    assert shown == {name: (m.kind, m.labels, m.about) for name, m in declared.items()}
