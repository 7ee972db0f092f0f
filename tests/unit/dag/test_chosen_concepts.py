"""What generated data draws is part of its node, and a name without drawings is refused."""

import pytest
import yaml
from paths import SPECS

from pipelines.dag.inputs import data_nodes
from pipelines.spec.pipeline import Spec


def nodes(concepts):
    raw = yaml.safe_load((SPECS / "demo.yaml").read_text())
    for split in ("train", "validation"):
        raw["data"][split].pop("concepts")
        if concepts is not None:
            raw["data"][split]["concepts"] = concepts
    return data_nodes(Spec.model_validate(raw))


def test_the_chosen_concepts_are_settings_of_the_data_and_all_of_them_are_not_named():
    assert [n.settings["concepts"] for n in nodes(["frog", "cat"])] == [["frog", "cat"]] * 2
    assert not any("concepts" in n.settings for n in nodes(None))


@pytest.mark.parametrize(
    ("concepts", "why"),
    [
        (["frog", "rokcet"], r"`data\.train\.concepts`: .*'rokcet'; did you mean 'rocket'"),
        (["frog", "xyz"], "write some of frog, penguin"),
        (["frog", "frog"], "each once"),
    ],
)
def test_concepts_without_drawings_are_refused(concepts, why):
    with pytest.raises(ValueError, match=why):
        nodes(concepts)
