"""Grafana's dashboard asks for metrics that exist, for all of them, and by labels they have."""

import json
import re

import pytest
from paths import ROOT

from pipelines.executor import outlook
from pipelines.serving import meters

DASHBOARD = json.loads((ROOT / "infra" / "grafana" / "ediffi.json").read_text(encoding="utf-8"))
METRICS = {**outlook.METRICS, **meters.METRICS}
SUFFIXES = {"counter": "_total", "gauge": "", "histogram": "_bucket"}
EXPORTED = {f"ray_{name}{SUFFIXES[m.kind]}": m for name, m in METRICS.items()}
"""Names as Prometheus has them; those of histograms are their buckets'."""

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
VARIABLES = {v["name"]: v for v in DASHBOARD["templating"]["list"]}


def names_in(query):
    return re.findall(r"\bray_\w+", query)


def test_every_metric_is_shown_and_no_other():
    shown = {name for target in TARGETS for name in names_in(target["expr"])}
    assert shown == set(EXPORTED)


@pytest.mark.parametrize("target", TARGETS, ids=[t["expr"] for t in TARGETS])
def test_a_query_goes_by_labels_that_its_metric_has(target):
    query = target["expr"]
    [name] = names_in(query)
    metric = EXPORTED[name]
    has = {*metric.labels, *(["le"] if metric.kind == "histogram" else [])}
    groups = [set(re.findall(r"\w+", by)) for by in re.findall(r"\bby \((.*?)\)", query)]
    assert set().union(*groups) <= has
    assert set(re.findall(r"(\w+)=~", query)) <= has
    legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    assert legend <= (groups[0] if groups else has)
    assert all(query.count(a) == query.count(b) for a, b in ("()", "{}", "[]"))
    assert set(re.findall(r"\$(\w+)", query)) <= {*VARIABLES, "__rate_interval"}
    counts = metric.kind != "gauge" and "failures" not in name  # failures are shown as they are
    assert ("rate(" in query or "increase(" in query) == counts


@pytest.mark.parametrize("name", ["pipeline", "model"])
def test_a_variable_takes_its_values_from_a_label_that_exists(name):
    query = VARIABLES[name]["definition"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
    assert label == name and label in EXPORTED[metric].labels
    assert VARIABLES[name]["query"]["query"] == query
    assert any(f"${name}" in target["expr"] for target in TARGETS)


def test_any_prometheus_can_be_chosen():
    sources = [p["datasource"] for p in [*PANELS, *TARGETS, VARIABLES["pipeline"]]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert VARIABLES["datasource"]["query"] == "prometheus"


def test_panels_lie_side_by_side():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
