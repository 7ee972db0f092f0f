"""`ediffi evaluate --protocol`: captions from COCO's annotations, the model's encoders, a CLIP."""

import pytest
import yaml
from curve_kit import coco, finished, points_of
from paths import COCO30K
from PIL import Image

from ediffi_core.encoders import CLIP, embedding_specs
from pipelines.data.chosen_captions import ChosenCaptions
from pipelines.demo.encoders import T5_WIDTH, WIDTH, train_clip, write_t5
from pipelines.spec.loading import load_protocol

ENCODERS = "nodes/encoders/tiny-e"


def clip_in(folder, seed):
    """Write a CLIP that was trained for one step."""
    folder.mkdir(parents=True)
    pictures = [Image.new("RGB", (32, 32), (n, 0, 0)) for n in range(8)]
    captions = [f"picture {n}" for n in range(8)]
    train_clip(
        folder, pictures, captions, images=8, batch=8, seed=seed, progress=lambda *seen: None
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store whose models are conditioned by real encoders, and a folder with another CLIP."""
    root = tmp_path_factory.mktemp("world")
    (root / f"store/{ENCODERS}/t5").mkdir(parents=True)
    write_t5(root / f"store/{ENCODERS}/t5", [f"picture {n}, told" for n in range(9)], seed=0)
    clip_in(root / f"store/{ENCODERS}/clip", seed=0)
    clip_in(root / "scorer", seed=1)
    conditioning = CLIP(str(root / f"store/{ENCODERS}/clip")).identity
    return root, finished(
        root / "store",
        embeddings=embedding_specs(T5_WIDTH, WIDTH, WIDTH),
        encoders_folder=ENCODERS,
        trained_with={"clip": conditioning},
    )


@pytest.fixture
def protocol(world, tmp_path):
    """``protocol(key=value, …)`` → a file with a small protocol."""
    annotations = coco(tmp_path, size=(12, 9))

    def write(**changes):
        raw = {
            "name": "small",
            "captions": {"annotations": str(annotations), "count": 10},
            "resolution": 8,
            "guidance": "0,2",
            "batch": 4,
            "clip": str(world[0] / "scorer"),
            "features": {"small": {"kind": "clip", "model": str(world[0] / "scorer")}},
            "measures": ["fid", "cmmd"],
        }
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return write


@pytest.mark.slow
def test_a_benchmark_is_measured_by_its_own_captions_and_clip(
    evaluate, drawn, world, protocol, tmp_path, monkeypatch
):
    _, store = world
    decoded, real = [], ChosenCaptions.real
    monkeypatch.setattr(
        ChosenCaptions,
        "real",
        lambda self, rows, side: decoded.append(len(rows)) or real(self, rows, side),
    )
    asked = ("tiny", "tiny/single", "--protocol", protocol())
    code, _, err = evaluate(store, *asked)
    assert (code, err) == (0, "")
    found = points_of(tmp_path / "report")
    assert (found["alignment"], found["distance"]) == ("clip_score", "fid/small")
    points = [point for line in found["lines"] for point in line["points"]]
    assert [point["setting"] for point in points] == [{"guidance": 0.0}, {"guidance": 2.0}] * 2
    for point in points:
        assert {"clip_score", "kernel_distance", "fid/small", "cmmd/small"} == set(
            point["measures"]
        )
        fid = point["measures"]["fid/small"]
        assert fid["count"] == 10 and fid["features"] == "small" and len(fid["sha256"]) == 64
    assert (drawn, decoded) == ([4, 4, 2] * 4, [4, 4, 2])
    encoded = store.files("curves/captions")
    assert len(encoded) == 1
    evaluate(store, *asked, "--guidance", "0,2,4")
    assert drawn == [4, 4, 2] * 6 and store.files("curves/captions") == encoded


@pytest.mark.slow
def test_bad_benchmarks_are_one_line(evaluate, world, protocol):
    root, store = world

    def refused(*more, **changes):
        code, _, err = evaluate(store, "tiny", "--protocol", protocol(**changes), *more)
        assert code == 2 and err.startswith("ediffi: ") and err.count("\n") == 1, err
        return err

    assert "conditions tiny" in refused(clip=f"{root}/store/{ENCODERS}/clip")
    assert "cannot be loaded" in refused(clip=f"{root}/store")
    assert "no stage of 16×16 pictures; it has base (8)" in refused(resolution=16)
    assert "pictures of 16×16, stage base draws 8×8" in refused("--stage", "base", resolution=16)
    assert "captions 12 pictures, but 13 are asked for" in refused("--captions", 13)
    assert "does not exist" in refused(captions={"annotations": f"{root}/captions_a.json"})
    assert "lacks 10 of the 10" in refused(captions={"images": str(root / "scorer")})
    assert "kid, which needs 1,000 pictures" in refused(measures=["kid"])
    assert "neighbours" in refused(measures=["neighbours"])
    assert "write it in quotes" in refused(guidance=600.5)  # what YAML makes of 0:10:0.5
    assert "unknown key `captoins`" in refused(captoins=3)
    assert "there is no file nowhere.pth" in refused(
        features={"small": {"kind": "inception", "weights": "nowhere.pth"}}
    )


def test_the_shipped_protocol_is_the_common_one():
    found = load_protocol(COCO30K)
    assert (found.captions.count, found.resolution) == (30_000, 256)
    assert found.features["inception"].kind == "inception" and found.measures[0] == "fid"
    assert found.clip != "ViT-L-14"
