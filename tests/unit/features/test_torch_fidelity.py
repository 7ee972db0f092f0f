"""FID, KID, precision and recall are those that torch-fidelity computes of the same pictures."""

import pytest
import torch

from ediffi_core.distances import KID_SEED, KID_SUBSET_SIZE, KID_SUBSETS, kid
from ediffi_core.features import Features
from ediffi_core.measures import measure
from pipelines.features.inception import InceptionFeatures

pytestmark = pytest.mark.slow


class AsDataset(torch.utils.data.Dataset):
    """Pictures as torch-fidelity takes them."""

    def __init__(self, pictures):
        self.pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index]


def test_measures_of_inception_are_torch_fidelity_s(inception_weights, pictures):
    """From pictures to numbers, on the first layer, which is fast."""
    from torch_fidelity import calculate_metrics

    layer, made, real = "64", pictures(14, 1, 0.8), pictures(16, 2)
    network = InceptionFeatures("inception", str(inception_weights), layer=layer)
    ours = measure(
        ["fid", "kid", "precision_recall"],
        *(
            Features.of(network.features(p), name=network.name, sha256=network.sha256)
            for p in (made, real)
        ),
        kid_subsets=10,
        kid_subset_size=8,
    )
    theirs = calculate_metrics(
        input1=AsDataset(made),
        input2=AsDataset(real),
        cuda=False,
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=10,
        kid_subset_size=8,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_weights),
        **{f"feature_layer_{m}": layer for m in ("fid", "kid", "prc")},
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )
    fid, kernel = theirs["frechet_inception_distance"], theirs["kernel_inception_distance_mean"]
    assert ours["fid"].value == pytest.approx(fid, rel=2e-6)  # their features' mean is float32
    assert ours["kid"].value == pytest.approx(kernel, rel=2e-6)  # their kernel is float32
    assert ours["precision"].value == pytest.approx(theirs["precision"], rel=1e-6)
    assert ours["recall"].value == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0 < ours["precision"].value < 1 and 0 < ours["recall"].value < 1
    assert (ours["fid"].count, ours["fid"].sha256) == (14, network.sha256)


def test_features_of_the_last_layer_are_torch_fidelity_s(inception_weights, pictures):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    shown = pictures(2, side=48)
    network = InceptionFeatures("inception", str(inception_weights))
    theirs = FeatureExtractorInceptionV3("theirs", ["2048"], str(inception_weights))
    with torch.inference_mode():
        (expected,) = theirs(torch.from_numpy(shown).permute(0, 3, 1, 2))
    found = network.features(shown)
    assert found.shape == (2, 2048) and network.dim == 2048
    assert float(found.std(dim=0).mean()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_kid_and_its_defaults_are_torch_fidelity_s():
    """In float64 to the last digits: the subsets are the same."""
    from torch_fidelity.defaults import DEFAULTS
    from torch_fidelity.metric_kid import kid_features_to_metric

    known = [DEFAULTS[k] for k in ("kid_subsets", "kid_subset_size", "rng_seed")]
    assert known == [KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED]
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 140, 5, generator=generator, dtype=torch.float64)
    size = {"kid_subsets": 7, "kid_subset_size": 90}
    theirs = kid_features_to_metric(1.1 * x, y[:110], verbose=False, **size)
    found = kid(Features.of(1.1 * x), Features.of(y[:110]), subsets=7, subset_size=90)
    assert found.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
