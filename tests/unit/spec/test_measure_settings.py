"""Features and measures in a spec: what fits, what is refused, and what enters a fingerprint."""

import typing

import pytest
import torch
from planning_kit import edited
from pydantic import ValidationError

from ediffi_core.distances import KID_SUBSET_SIZE, KID_SUBSETS
from ediffi_core.manifolds import DENSITY_K, PRECISION_K
from ediffi_core.measures import MEASURES
from pipelines.dag import sources
from pipelines.spec.evaluation import Evaluate, FeatureNetwork, Measure, MeasureOptions

FILE = "/models/weights.pth"


def test_names_and_defaults_are_those_of_the_core():
    assert typing.get_args(Measure) == MEASURES
    options = MeasureOptions()
    assert (options.kid_subsets, options.kid_subset_size) == (KID_SUBSETS, KID_SUBSET_SIZE)
    assert (options.precision_k, options.density_k) == (PRECISION_K, DENSITY_K)


def test_settings_without_features_are_those_of_before():
    assert not {"features", "measures", "measure_options"} & Evaluate().settings().keys()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kind": "inception"}, "features of kind inception need `weights:`"),
        ({"kind": "inception", "weights": FILE, "model": "x"}, "`model:` has no meaning"),
        ({"kind": "inception", "weights": FILE, "layer": "7"}, "inception has no layer '7'"),
        ({"kind": "inception", "weights": "s3://b/w.pth"}, "is an address; write the path"),
        ({"kind": "clip", "weights": FILE}, "`weights:` has no meaning for clip"),
        ({"kind": "network", "weights": FILE}, "features of kind network need `model:`"),
        ({"kind": "network", "weights": FILE, "model": "vgg16"}, "write `torchvision:NAME`"),
        ({"kind": "network", "weights": FILE, "model": "timm:"}, "`model: timm:` is no network"),
        (
            {"kind": "network", "weights": FILE, "model": "timm:vit", "size": 8},
            "`size:` has no meaning for network",
        ),
        (
            {"kind": "network", "weights": FILE, "model": "torchscript", "layer": "a"},
            "`layer:` has no meaning for network torchscript",
        ),
        ({"kind": "network", "model": "torchscript", "weights": FILE, "std": [1.0]}, "std"),
        ({"kind": "vgg"}, "'clip', 'inception' or 'network'"),
    ],
)
def test_features_that_make_no_sense_are_refused(given, says):
    with pytest.raises(ValidationError, match=says):
        FeatureNetwork.model_validate(given)


def test_names_of_features_are_parts_of_names_of_metrics():
    with pytest.raises(ValidationError, match="pattern"):
        Evaluate(features={"a/b": FeatureNetwork(kind="clip")})
    with pytest.raises(ValidationError, match="names a measure twice"):
        Evaluate(measures=["fid", "fid"])


def test_cmmd_is_measured_only_on_clip():
    features = {
        "clip": FeatureNetwork(kind="clip"),
        "inception": FeatureNetwork(kind="inception", weights=FILE),
    }
    evaluate = Evaluate(features=features, measures=["fid", "cmmd"])
    assert evaluate.measures_on("clip") == ["fid", "cmmd"]
    assert evaluate.measures_on("inception") == ["fid"]


def test_features_are_identified_by_the_content_of_their_weights(tmp_path):
    def identity(folder, value, **given):
        path = tmp_path / folder / "weights.pth"
        path.parent.mkdir(exist_ok=True)
        torch.save({"a": torch.tensor(value)}, path)
        given = {"kind": "inception", "weights": str(path), **given}
        return sources.identify_features("inception", FeatureNetwork(**given))

    first = identity("a", 1.0)
    assert first == identity("b", 1.0)  # moved
    assert first != identity("a", 2.0)
    assert first != identity("a", 1.0, layer="768")
    assert str(tmp_path) not in str(first)


def test_weights_that_are_not_there_are_assumed_only_for_a_plan_without_data():
    spec = edited(evaluate__features={"inception": {"kind": "inception", "weights": FILE}})
    assumed = sources.identify_all(spec, assume=True)["features"]["inception"]
    assert assumed == {"kind": "inception", "weights": "assumed"}
    with pytest.raises(ValueError, match=r"`evaluate.features.inception.weights`: there is no"):
        sources.identify_all(spec)


def test_a_published_clip_is_identified_by_name_and_tag():
    given = {"kind": "clip", "model": "ViT-L-14-336", "pretrained": "laion2b"}
    assert sources.identify_features("clip", FeatureNetwork(**given)) == given
