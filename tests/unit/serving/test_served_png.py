"""A served picture's file draws the same pixels again, and says that a model made it."""

import base64
import functools
import io
import sys
from xml.etree import ElementTree

import ensemble_kit
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import cli
from pipelines.lineage.lookup import find_model, identify
from pipelines.models import rows
from pipelines.models.text_to_image import TextToImage
from pipelines.serving.png import Said, request_of, to_png
from pipelines.spec.serving import Limits

pytestmark = pytest.mark.slow

PROMPT = "a frog and a rocket"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SOURCE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ensemble_kit.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def load():
    """Loading, once for each ensemble; on one thread, for threads wait long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield functools.cache(TextToImage.load)
    torch.set_num_threads(before)


@pytest.fixture
def serve(store, load):
    """``serve(stage, **given)`` → pixels and PNG file of a row."""
    place = find_model("tiny@1", store.root)
    model, drawn_by = load(place, "all", store.root), identify(place, store.root)

    def draw(stage=None, **given):
        row = rows.parse_row({"prompt": PROMPT, "seed": 7, **given}, model.sampling, Limits())
        [pixels] = rows.draw(model, [row], stage)
        said = Said(model=drawn_by, row=row, sampling=model.sampling, stage=stage)
        return pixels, to_png(pixels, said)

    return draw


@pytest.fixture
def again(store, load, monkeypatch, capsys, tmp_path):
    """``again(png, *options)`` → what ``sample --like`` prints on stderr, and the pixels if any."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextToImage, "load", load)

    def run(png, *options):
        (tmp_path / "served.png").write_bytes(png)
        arguments = ["--like", "served.png", "-o", "again.png", "--storage", store.root, *options]
        monkeypatch.setattr(sys, "argv", ["ediffi", "sample", *arguments])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                return capsys.readouterr().err, None
        drawn = np.asarray(Image.open(tmp_path / "again.png").convert("RGB"))
        return capsys.readouterr().err, drawn

    return run


def picture(color, side=20, mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, (side, side), color).save(out, "PNG")
    return out.getvalue()


def encoded(data):
    return base64.b64encode(data).decode()


def half_black():
    image = Image.new("L", (20, 20), 90)
    image.paste(200, (0, 0, 12, 20))
    out = io.BytesIO()
    image.save(out, "PNG")
    return encoded(out.getvalue())


GIVEN = {
    "plain": {},
    "settings": {"sampling": {"sr16.steps": 3, "solver": "heun"}, "guidance": 3.0, "seed": 2**40},
    "base": {"stage": "base", "negative": "a rocket"},
    "painted": {
        "paint": [
            {"phrase": "frog", "where": [0, 0, 0.4, 1], "strength": 1.0},
            {"phrase": "rocket", "where": half_black()},
        ]
    },
    "switched": {"then": "a rocket", "switch": 0.5},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN.keys())
def test_like_draws_the_served_pixels(serve, again, given):
    pixels, png = serve(**given)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)
    message, drawn = again(png, "--scale", "1")
    assert message == "" and np.array_equal(drawn, pixels)


def test_the_settings_are_those_that_were_in_effect(serve, store, load):
    model = load(find_model("tiny@1", store.root), "all", store.root)
    row = rows.parse_row(
        {"prompt": PROMPT, "sampling": {"sr16.steps": 3}}, model.sampling, Limits()
    )
    said = Said(model=identify(find_model("tiny@1", store.root), store.root), row=row,
                sampling=model.sampling)  # fmt: skip
    assert request_of(said).sampling["sr16"].steps == 3
    assert request_of(said).sampling["base"] == model.sampling["base"]
    with pytest.raises(ValueError, match="there is no stage 'sr64'; the cascade has base, sr16"):
        request_of(Said(model=said.model, row=row, sampling=model.sampling, stage="sr64"))


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ({"style": [encoded(picture("red"))], "style_weights": [0.5]}, "--style"),
        ({"variation": encoded(picture("red"))}, "--variation"),
        ({"image": encoded(picture("red")), "sigma": 2.0, "mask": half_black()}, "--image"),
    ],
)
def test_what_was_uploaded_is_asked_for_and_draws_the_same(serve, again, tmp_path, given, option):
    pixels, png = serve(**given)
    message, drawn = again(png)
    assert drawn is None
    assert message.startswith("ediffi: upload is gone; restore it, or give another file with "
                              + option)  # fmt: skip
    (tmp_path / "mine.png").write_bytes(picture("red"))
    message, drawn = again(png, "--scale", "1", option, "mine.png")
    assert message == "" and np.array_equal(drawn, pixels)


def xmp(png):
    return Image.open(io.BytesIO(png)).info["XML:com.adobe.xmp"]


def source_type(png):
    [description] = ElementTree.fromstring(xmp(png)).iter(f"{RDF}Description")
    return description.attrib[SOURCE]


def test_xmp_says_that_a_model_made_the_picture(serve):
    assert source_type(serve()[1]) == TERMS + "trainedAlgorithmicMedia"
    edited = {"image": encoded(picture("red")), "sigma": 2.0}
    assert source_type(serve(**edited)[1]) == TERMS + "compositeWithTrainedAlgorithmicMedia"


def test_the_packet_is_where_readers_of_xmp_look(serve):
    """XMP part 3, 1.1.5: an iTXt chunk before the pixels, uncompressed, without language."""
    png = serve()[1]
    packet = xmp(png).encode()
    head = b"iTXtXML:com.adobe.xmp\0" + b"\0\0" + b"\0" + b"\0"
    assert png.count(head + packet) == 1 and png.index(packet) < png.index(b"IDAT")
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode())
    assert packet.endswith(b'<?xpacket end="r"?>')
