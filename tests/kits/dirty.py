"""Realistic bad rows, the reason that each is rejected for, and writers for each format."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.data.captions import MAX_WORDS
from pipelines.data.filters import apply_filters
from pipelines.data.pictures import decode
from pipelines.data.rows import Reason, RejectedRow, Row, RowError
from pipelines.data.sources import list_shards, read_shard
from pipelines.spec.data import Filters, Source

FILTERS = Filters.model_validate({"min_side": 24, "caption_characters": {"max": 1000}})


def encoded(picture=None, format="JPEG", **options):
    if picture is None:
        picture = Image.new("RGB", (32, 32), (200, 30, 30))
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def noise(size=(64, 64), mode="RGB", seed=0):
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(values.squeeze(), mode)


def bomb(side=60_000):
    """A PNG of a hundred bytes whose header claims gigabytes."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise((64, 32)), exif=exif)


JPEG, PNG = encoded(noise()), encoded(noise(), "PNG")
FRAMES = [Image.new("P", (32, 32), i) for i in range(3)]
R = Reason

IMAGES = {
    "empty image": (b"", R.IMAGE_EMPTY),
    "html": (b"<html>404 Not Found</html>", R.IMAGE_UNKNOWN),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", R.IMAGE_UNKNOWN),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", R.IMAGE_UNKNOWN),
    "zeros": (bytes(100), R.IMAGE_UNKNOWN),
    "jpeg cut short": (JPEG[: len(JPEG) // 2], R.IMAGE_BROKEN),
    "png cut short": (PNG[: len(PNG) // 2], R.IMAGE_BROKEN),
    "png overwritten": (PNG[:200] + bytes(200) + PNG[400:], R.IMAGE_BROKEN),
    "bomb": (bomb(), R.IMAGE_PIXELS),
    "small": (encoded(noise((64, 23))), R.IMAGE_SMALL),
    "sliver": (encoded(Image.new("L", (20_000, 1))), R.IMAGE_SMALL),
    "float tiff": (encoded(Image.new("F", (32, 32)), "TIFF"), R.IMAGE_DEPTH),
    "cmyk": (encoded(noise(mode="CMYK")), None),
    "grey": (encoded(noise(mode="L")), None),
    "bilevel": (encoded(Image.new("1", (32, 32)), "PNG"), None),
    "16 bit": (encoded(Image.fromarray(np.full((32, 32), 40_000, np.uint16)), "PNG"), None),
    "palette with alpha": (encoded(FRAMES[0], "PNG", transparency=0), None),
    "grey with alpha": (encoded(noise(mode="LA"), "PNG"), None),
    "rgba webp": (encoded(noise(mode="RGBA"), "WEBP"), None),
    "rotated": (rotated(), None),
    "animated gif": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), None),
    "animated png": (encoded(noise(), "PNG", save_all=True, append_images=[noise(seed=1)]), None),
    "animated webp": (encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)]), None),
    "bmp": (encoded(noise(), "BMP"), None),
    "tiff": (encoded(noise(), "TIFF"), None),
}

CAPTIONS = {
    "empty caption": (b"", R.CAPTION_EMPTY),
    "blank caption": (b" \t\r ", R.CAPTION_EMPTY),
    "latin-1": ("caf\xe9 au lait".encode("latin-1"), R.CAPTION_ENCODING),
    "utf-16": ("a cat".encode("utf-16"), R.CAPTION_ENCODING),
    "nul": (b"a\0cat", R.CAPTION_CONTROL),
    "escape": (b"a \x1b[31mred\x1b[0m cat", R.CAPTION_CONTROL),
    "c1 control": ("a\u0085cat".encode(), R.CAPTION_CONTROL),
    "emoji": ("😀 👍🏽".encode(), R.CAPTION_WORDLESS),
    "dashes": (b"--- ... ---", R.CAPTION_WORDLESS),
    "endless": (b"a " * (MAX_WORDS + 1), R.CAPTION_WORDS),
    "long": (b"a" * 1001, R.CAPTION_LENGTH),
    "chinese": ("一只戴着帽子的猫".encode(), None),
    "arabic": ("قطة ترتدي قبعة".encode(), None),
    "number": (b"42", None),
    "emoji and word": ("a cat 😀".encode(), None),
    "decomposed": ("cafe\u0301".encode(), None),
}

CASES = {name: (image, b"a red square", reason) for name, (image, reason) in IMAGES.items()} | {
    name: (JPEG, caption, reason) for name, (caption, reason) in CAPTIONS.items()
}
"""Name → image, caption, and the reason to reject the row, or None."""

EXPECTED_BAD = {name: reason for name, (_, _, reason) in CASES.items() if reason}
EXPECTED_GOOD = {name for name, (_, _, reason) in CASES.items() if not reason}


def collect_rows(source, filters=FILTERS):
    """Read a data set as a job does; returns the rows that decode, and the rejected rows."""
    rows, rejected = [], []
    for shard in list_shards(source):
        for found in read_shard(source, shard):
            for item in apply_filters(found, filters) if isinstance(found, Row) else [found]:
                if isinstance(item, Row):
                    try:
                        assert decode(item.image).mode == "RGB"
                    except RowError as bad:
                        item = RejectedRow(item.key, item.source, bad.reason, bad.detail)
                (rows if isinstance(item, Row) else rejected).append(item)
    return rows, rejected


def source_at(path, **settings):
    return Source.model_validate({"path": str(path), **settings})


def write_parquet(path, rows, **options):
    """Write rows, given as dicts; captions of bytes are written as if they were UTF-8."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "caption" and all(isinstance(v, bytes) for v in values):
            columns[name] = pa.array(values, pa.binary()).view(pa.string())
        else:
            columns[name] = pa.array(values)
    pq.write_table(pa.table(columns), path, **options)


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def json_line(**fields):
    return json.dumps(fields).encode() + b"\n"


def reasons(rejected):
    return {bad.key: bad.reason for bad in rejected}
