"""A task that no machine can run is reported before it waits."""

import pytest

from pipelines.executor.ray_cluster import lacking


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
