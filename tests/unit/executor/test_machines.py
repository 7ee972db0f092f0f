"""A task that no machine can run is reported before it waits."""

from types import SimpleNamespace

import pytest

from pipelines.dag.node import Node
from pipelines.executor.ray_cluster import lacking
from pipelines.executor.run_step import check_machines


def machine(gpus=0, alive=True, **labels):
    return {"Alive": alive, "Resources": {"CPU": 8.0, "GPU": gpus}, "Labels": labels}


@pytest.mark.parametrize(
    ("gpus", "labels", "machines", "expected"),
    [
        (0, {}, [], ""),
        (1, {}, [machine(), machine(gpus=8)], ""),
        (1, {}, [machine(), machine(gpus=8, alive=False)], "1 GPU"),
        (0.5, {"group": "sr"}, [machine(gpus=4, group="base")], "0.5 GPU and the label group: sr"),
        (0, {"group": "sr"}, [machine(group="base"), machine(group="sr")], ""),
        (
            1,
            {"group": "sr"},
            [machine(gpus=1), machine(group="sr")],
            "1 GPU and the label group: sr",
        ),
        (0, {"kind": "in(A100,H100)", "market": "!spot"}, [machine()], ""),  # left to Ray
    ],
)
def test_what_is_lacking(gpus, labels, machines, expected):
    assert lacking(gpus, labels, machines) == expected


def test_cpus_must_be_on_one_machine():
    two = [machine(), machine()]
    assert lacking(0, {}, two, cpus=8) == ""
    assert lacking(0, {}, two, cpus=9) == "9 CPUs"
    assert lacking(1, {}, [machine(gpus=1)], cpus=9) == "9 CPUs and 1 GPU"


def test_a_node_reports_that_it_waits_for_a_machine_with_its_workers_cpus(monkeypatch):
    reports = []
    monkeypatch.setenv("RAY_ADDRESS", "ray://cluster")
    monkeypatch.setattr("ray.nodes", lambda: [machine(), machine()])
    ctx = SimpleNamespace(report=lambda **row: reports.append(row["message"]))
    for actors, cpus in ((2, 16), (2, 18), (1, 9)):
        node = Node(
            kind="evaluate", name="base/root", settings={}, runtime={"actors": actors}, cpus=cpus
        )
        check_machines(node, ctx)
    assert reports == ["is waiting for a machine with 9 CPUs"] * 2
