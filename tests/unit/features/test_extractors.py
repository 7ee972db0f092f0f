"""Networks of every kind give the features that their libraries give, or say what is wrong."""

import sys

import numpy as np
import pytest
import torch
from embed_kit import write_encoders
from PIL import Image
from safetensors.torch import save_file

from ediffi_core.encoders import CLIP
from pipelines.features.inception import InceptionFeatures
from pipelines.features.opening import open_extractor
from pipelines.spec.evaluation import FeatureNetwork


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return write_encoders(tmp_path_factory.mktemp("encoders"))["clip"]


@pytest.fixture(scope="session")
def resnet(tmp_path_factory):
    """A torchvision network without training, and the file of its weights."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(weights=None).eval()
    path = tmp_path_factory.mktemp("resnet") / "resnet18.safetensors"
    save_file(network.state_dict(), path)
    return network, path


def opened(name="some", **given):
    return open_extractor(name, FeatureNetwork(**given))


@pytest.mark.slow
def test_clip_s_features_are_its_embeddings(clip_folder, pictures):
    network, clip = opened(kind="clip", model=clip_folder), CLIP(clip_folder)
    shown = pictures(70)  # more than a batch
    expected = clip.image([Image.fromarray(p) for p in shown])
    found = network.features(shown)
    torch.testing.assert_close(found, expected)
    assert (network.name, network.sha256, network.dim) == ("some", clip.sha256, 24)
    conditioning = open_extractor("own", FeatureNetwork(kind="clip"), clip=clip_folder)
    assert torch.equal(conditioning.features(shown), found)


@pytest.mark.slow
def test_a_torchvision_network_gives_what_its_classifier_reads_or_a_layer(resnet, pictures):
    from torchvision.models import ResNet18_Weights
    from torchvision.models.feature_extraction import create_feature_extractor

    reference, path = resnet
    network = opened(kind="network", model="torchvision:resnet18", weights=str(path))
    shown = pictures(2)
    batch = torch.stack([ResNet18_Weights.DEFAULT.transforms()(Image.fromarray(p)) for p in shown])
    nodes = create_feature_extractor(reference, {"flatten": "last", "layer2": "inner"})
    with torch.inference_mode():
        expected = nodes(batch)
    torch.testing.assert_close(network.features(shown), expected["last"])
    given = {"kind": "network", "model": "torchvision:resnet18", "weights": str(path)}
    inner = opened(**given, layer="layer2")
    torch.testing.assert_close(inner.features(shown), expected["inner"].mean((2, 3)))
    assert (network.dim, inner.dim) == (512, 128)
    assert network.sha256 == inner.sha256
    with pytest.raises(ValueError, match=r"has no layer 'layer9'; its parts are conv1, bn1"):
        opened(**given, layer="layer9")


@pytest.mark.slow
def test_a_timm_network_gives_its_pooled_features(tmp_path, pictures):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(0)
    reference = timm.create_model("test_vit", pretrained=False).eval()
    path = tmp_path / "vit.pth"
    torch.save({"state_dict": reference.state_dict()}, path)  # as timm's checkpoints have it
    network = opened(kind="network", model="timm:test_vit", weights=str(path))
    shown = pictures(2)
    transform = create_transform(**resolve_model_data_config(reference), is_training=False)
    batch = torch.stack([transform(Image.fromarray(p)) for p in shown])
    with torch.inference_mode():
        expected = reference.forward_head(reference.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(network.features(shown), expected)
    tokens = opened(kind="network", model="timm:test_vit", weights=str(path), layer="blocks.0")
    assert tokens.features(shown).shape == (2, tokens.dim)
    with pytest.raises(ValueError, match=r"timm has no network 'test_vi'; did you mean `test_vi"):
        opened(kind="network", model="timm:test_vi", weights=str(path))


class Mean(torch.nn.Module):
    """A picture's mean color, of what it is given."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.gain * x


def test_a_torchscript_program_gets_resized_and_normalised_pictures(tmp_path, pictures):
    path = tmp_path / "program.pt"
    torch.jit.save(torch.jit.script(Mean()), path)
    shown = pictures(3)
    given = {"kind": "network", "model": "torchscript", "weights": str(path)}
    plain = opened(**given)
    mean = torch.from_numpy(shown).double().mean((1, 2)) / 255
    torch.testing.assert_close(plain.features(shown), 2 * mean.float())
    scaled = opened(**given, size=8, mean=[0.5, 0.5, 0.5], std=[0.1, 0.2, 0.5])
    expected = 2 * (mean - 0.5) / torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
    torch.testing.assert_close(scaled.features(shown), expected.float(), rtol=0.02, atol=0.05)
    assert plain.dim == 3 and len(plain.sha256) == 64


def test_a_torchscript_program_that_needs_another_size_says_so(tmp_path, pictures):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    path = tmp_path / "program.pt"
    torch.jit.save(torch.jit.script(network), path)
    given = {"kind": "network", "model": "torchscript", "weights": str(path)}
    assert opened(**given, size=8).dim == 2
    with pytest.raises(ValueError, match=r"cannot read pictures \[3, 3, 32, 32\].* set `size:`"):
        opened(**given).features(pictures(3))


def test_other_weights_have_another_sha256(tmp_path):
    found = set()
    for gain in (1.0, 2.0):
        program = Mean()
        program.gain.data.fill_(gain)
        torch.jit.save(torch.jit.script(program), tmp_path / "program.pt")
        weights = str(tmp_path / "program.pt")
        found.add(opened(kind="network", model="torchscript", weights=weights).sha256)
    assert len(found) == 2


class Unsafe:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (sys.exit, ("unpickled",))


@pytest.mark.parametrize("kind", ["network", "inception"])
@pytest.mark.parametrize("content", ["missing", "text", "objects", "list", "safetensors"])
def test_a_file_that_is_no_weights_is_refused(kind, content, tmp_path):
    path = tmp_path / ("w.safetensors" if content == "safetensors" else "w.pth")
    if content in ("text", "safetensors"):
        path.write_text("no weights")
    if content in ("objects", "list"):
        torch.save(Unsafe() if content == "objects" else [torch.zeros(1)], path)
    given = {"model": "torchvision:squeezenet1_1"} if kind == "network" else {}
    says = "there is no file" if content == "missing" else "is no file of weights"
    with pytest.raises(ValueError, match=rf"`evaluate.features.some.weights`: .*{says}") as raised:
        opened(kind=kind, weights=str(path), **given)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["network", pytest.param("inception", marks=pytest.mark.slow)])
def test_weights_of_another_network_are_refused(kind, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    given = {"model": "torchvision:squeezenet1_1"} if kind == "network" else {}
    with pytest.raises(ValueError, match="is of another network") as raised:
        opened(kind=kind, weights=str(tmp_path / "w.pth"), **given)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_program_and_an_unknown_network_are_refused(tmp_path):
    (tmp_path / "w.pt").write_text("no program")
    weights = str(tmp_path / "w.pt")
    with pytest.raises(ValueError, match="is no TorchScript program"):
        opened(kind="network", model="torchscript", weights=weights)
    with pytest.raises(ValueError, match=r"no network 'resnet19'; did you mean `resnet18`"):
        opened(kind="network", model="torchvision:resnet19", weights=weights)


def test_a_folder_without_clip_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`evaluate.features.some`: CLIP .* cannot be loaded"):
        opened(kind="clip", model=str(tmp_path))
    with pytest.raises(ValueError, match=r"name a CLIP as `model:`"):
        opened(kind="clip")


def test_inception_without_its_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"needs the package torch-fidelity, .* not installed"):
        InceptionFeatures("inception", "weights.pth")


def test_pictures_of_another_form_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(Mean()), tmp_path / "program.pt")
    weights = str(tmp_path / "program.pt")
    network = opened(kind="network", model="torchscript", weights=weights)
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 3, 8, 8), np.uint8)):
        with pytest.raises(ValueError, match=r"pictures \[N, R, R, 3\] of uint8"):
            network.features(wrong)
