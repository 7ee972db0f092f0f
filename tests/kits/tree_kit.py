"""The demo's tree as a finished run stores it, with made-up numbers."""

import json
from pathlib import Path

from paths import DEMO

from pipelines.dag import plan, sources
from pipelines.reports import tree as tree_view
from pipelines.spec.loading import load
from pipelines.store.artifacts import Store

MEASURED = {
    "base": {
        "E0_0": (0.1513,),
        "E1_1": (0.1520, 0.1582, 0.0062, 0.0031, 0.0093),
        "E2_3": (0.1868, 0.1858, -0.0010, -0.0031, 0.0011),
        "M_C": (0.0907, 0.1044, 0.0137, 0.0129, 0.0145),
        "E1_0": (0.1262, 0.1209, -0.0053, -0.0074, -0.0032),
        "single": (0.1287, 0.1513, 0.0227, 0.0208, 0.0245),
    },
    "sr32": {
        "E0_0": (0.2495,),
        "E1_1": (0.1360, 0.1839, 0.0478, 0.0462, 0.0495),
        "E1_0": (0.2670, 0.3132, 0.0462, 0.0430, 0.0494),
    },
    "sr64": {"E0_0": (0.2257,)},
}
KEYS = ("val_loss", "val_loss_parent", "val_gain", "val_gain_low", "val_gain_high")


def demo_tree(root: Path) -> dict:
    """The tree as read from the store, through JSON."""
    loaded = load(DEMO)
    made = plan.make(loaded, Store.at(str(root)), sources.identify_all(loaded))
    tree = tree_view.build(made, None, {})
    tree |= {"execution": "emoji-scenes-20260102-030405-000006", "state": "done"}
    for stage, experts in MEASURED.items():
        for name, numbers in experts.items():
            tree["stages"][stage]["experts"][name] |= {
                "state": "done",
                "metrics": dict(zip(KEYS, numbers, strict=False)),
                "weights_sha256": f"{stage}{name}".encode().hex().ljust(64, "0"),
            }
    tree["stages"]["base"]["evaluations"] = {
        "ensemble": {
            "concepts": 0.317,
            "concepts_ci95": 0.05,
            "concepts_pictures": 128,
            "val_loss": 0.137,
            "val_loss_pictures": 1000,
            "real/concepts": 0.987,
        },
        "single": {"concepts": 0.319, "val_loss": 0.129},
    }
    tree["stages"]["base"]["compared"] = {
        "gain/concepts": -0.002,
        "gain/concepts_low": -0.03,
        "gain/concepts_high": 0.026,
        "gain/concepts_pictures": 120,
        "gain/val_loss": -0.008,
        "gain/val_loss_low": -0.009,
        "gain/val_loss_high": -0.007,
        "gain/val_loss/E2_3": -0.02,
        "gain/val_loss/E2_3_low": -0.03,
        "gain/val_loss/E2_3_high": -0.01,
        "gain/val_loss/E2_3_pictures": 1000,
    }
    return json.loads(json.dumps(tree))
