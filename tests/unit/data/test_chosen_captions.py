"""Captions of a benchmark: chosen by seed from annotations in COCO's format."""

import io
import json

import numpy as np
import pytest
from curve_kit import coco
from PIL import Image

from pipelines.data.chosen_captions import choose


def test_each_chosen_picture_has_one_of_its_own_captions(tmp_path):
    found = choose(str(coco(tmp_path)), None, count=9, seed=3)
    numbers = [int(f.path.rpartition("_")[2].removesuffix(".jpg")) for f in found.files]
    assert len(set(numbers)) == len(found) == 9
    for number, caption in zip(numbers, found.captions, strict=True):
        assert caption in {f"picture {number}, told {i}" for i in range(3)}
    assert len({caption[-1] for caption in found.captions}) > 1  # not always the first


def test_a_choice_depends_on_the_seed_alone_and_begins_a_larger_one(tmp_path):
    path = coco(tmp_path)
    file = str(path)
    some, more = (choose(file, None, count=n, seed=3).captions for n in (4, 9))
    assert more[:4] == some
    assert choose(file, None, count=9, seed=4).captions != more
    raw = json.loads(path.read_text())
    raw["images"].reverse()
    raw["annotations"].reverse()
    path.write_text(json.dumps(raw))
    assert choose(file, None, count=9, seed=3).captions == more


def test_real_pictures_are_central_squares_and_small_ones_are_enlarged(tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    file = coco(tmp_path, pictures=False)
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32] = 255  # the central square is white
    for n in range(12):
        data = io.BytesIO()
        Image.fromarray(stripes).save(data, "PNG")
        (folder / f"COCO_val2014_{n:012d}.jpg").write_bytes(data.getvalue())
    found = choose(str(file), str(folder), count=3, seed=0)
    for side in (8, 32):
        real = found.real([2, 0], side)
        assert real.shape == (2, side, side, 3) and real.dtype == np.uint8
        assert (real == 255).all()


def test_changed_pictures_and_captions_change_the_identities(tmp_path):
    file = coco(tmp_path)
    before = choose(str(file), None, count=12, seed=0)
    texts, pictures = before.texts_identity, before.pictures_identity
    Image.new("RGB", (40, 40)).save(tmp_path / "val2014" / "COCO_val2014_000000000003.jpg")
    after = choose(str(file), None, count=12, seed=0)
    assert after.texts_identity == texts and after.pictures_identity != pictures
    assert choose(str(file), None, count=11, seed=0).texts_identity != texts


def test_bad_input_is_one_line(tmp_path):
    def refused(annotations, images=None, count=3):
        with pytest.raises(ValueError) as error:
            choose(str(annotations), images and str(images), count=count, seed=0)
        assert "\n" not in str(error.value)
        return str(error.value)

    file = coco(tmp_path)
    assert "does not exist" in refused(tmp_path / "annotations" / "captions_val2017.json")
    assert "captions_NAME.json" in refused(tmp_path / "val.json")
    assert "captions 12 pictures, but 30,000 are asked for" in refused(file, count=30_000)
    (tmp_path / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
    lacks = refused(file, count=12)
    assert "lacks 1 of the 12 chosen pictures" in lacks
    assert "COCO_val2014_000000000003.jpg" in lacks
    (tmp_path / "none").mkdir()
    assert "lacks 3 of the 3" in refused(file, tmp_path / "none")
    for text in ("[]", '{"images": []}', "no json", '{"images": [], "annotations": []}'):
        other = tmp_path / "captions_other.json"
        other.write_text(text)
        assert str(other) in refused(other)


def test_a_damaged_picture_is_named(tmp_path):
    file = coco(tmp_path)
    found = choose(str(file), None, count=12, seed=0)
    path = tmp_path / found.files[5].path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot be read .* fetch it again"):
        found.real([5], 16)
