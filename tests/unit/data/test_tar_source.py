"""Tar files from other tools, and damaged ones."""

import gzip
import io
import tarfile

import pytest
from dirty import JPEG, PNG, collect_rows, json_line, source_at, write_tar

from pipelines.data.formats.tar import members
from pipelines.data.sources import list_shards, read_shard

BLOCK = 512
SAMPLES = 12


def write_samples(path, count=SAMPLES, mode="w"):
    pairs = ([(f"{i:04d}.jpg", JPEG), (f"{i:04d}.txt", b"a cat")] for i in range(count))
    write_tar(path, [member for pair in pairs for member in pair], mode)


def outcome(path, **settings):
    rows, rejected = collect_rows(source_at(path, **settings))
    return [row.key for row in rows], sorted((bad.key, bad.reason.name) for bad in rejected)


def names(*numbers):
    return [f"{i:04d}" for i in numbers]


def test_a_header_that_is_damaged_costs_its_row_alone(tmp_path):
    path = tmp_path / "a.tar"
    write_samples(path)
    with tarfile.open(path) as archive:
        at = archive.getmember("0005.jpg").offset
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"damaged!"
    path.write_bytes(data)
    (shard,) = list_shards(source_at(path))
    keys, rejected = outcome(path)
    assert keys == names(*range(5), *range(6, SAMPLES))
    assert rejected == [("0005", "IMAGE_MISSING"), (shard.name, "FILE_BROKEN")]


@pytest.mark.parametrize("where", ["in a picture", "after a header", "between members"])
def test_a_tar_cut_short_gives_what_was_before(tmp_path, where):
    path = tmp_path / "a.tar"
    write_samples(path)
    with tarfile.open(path) as archive:
        at = archive.getmember("0007.jpg").offset
    cut = at + {"in a picture": 3 * BLOCK, "after a header": BLOCK, "between members": 0}[where]
    path.write_bytes(path.read_bytes()[:cut])
    keys, rejected = outcome(path)
    assert keys == names(*range(7))
    assert [reason for _, reason in rejected] == ["FILE_BROKEN"]


def test_a_gzipped_tar_whole_and_cut_short(tmp_path):
    path = tmp_path / "a.tar.gz"
    write_samples(path, mode="w:gz")
    assert outcome(path) == (names(*range(SAMPLES)), [])
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole, 0)[: len(whole) // 2])
    keys, rejected = outcome(path)
    assert 3 < len(keys) < 8
    assert [reason for _, reason in rejected][-1] == "FILE_BROKEN"


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, JPEG], ids=["empty", "text", "jpeg"])
def test_what_is_no_tar_is_one_bad_row(tmp_path, data):
    write_samples(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(data)
    rows, rejected = collect_rows(source_at(tmp_path))
    assert len(rows) == SAMPLES
    assert [(bad.source, bad.reason.name) for bad in rejected] == [("b.tar", "FILE_BROKEN")]


def test_members_that_do_not_belong(tmp_path):
    path = tmp_path / "a.tar"
    deep = "/".join(["a long folder's name"] * 12)
    write_tar(
        path,
        [
            ("../evil.jpg", JPEG),
            ("/etc/evil.jpg", JPEG),
            (f"{deep}/deep.jpg", JPEG),
            (f"{deep}/deep.txt", b"a cat"),
            ("two.jpg", JPEG),
            ("two.png", PNG),
            ("two.txt", b"a cat"),
            ("seg.jpg", JPEG),
            ("seg.mask.png", PNG),
            ("seg.txt", b"a cat\na dog"),
            ("README.md", b"about"),
            ("._seg.jpg", b"x"),
            ("noimage.txt", b"a cat"),
            ("notext.jpg", JPEG),
            ("broken.jpg", JPEG),
            ("broken.json", b"{"),
            ("list.jpg", JPEG),
            ("list.json", b"[1]"),
            ("twice.jpg", JPEG),
            ("twice.txt", b"a cat"),
            ("twice.jpg", JPEG),
            ("twice.txt", b"a dog"),
            ("json.jpg", JPEG),
            ("json.json", json_line(caption="of json", id=7)),
            ("seg.jpg", JPEG),
            ("seg.txt", b"again"),
        ],
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname, link.size = tarfile.SYMTYPE, "/etc/passwd", 0
        archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        info = tarfile.TarInfo("last.jpg")
        info.size = len(JPEG)
        archive.addfile(info, io.BytesIO(JPEG))
        archive.addfile(tarfile.TarInfo("last.txt"))
    keys, rejected = outcome(path)
    assert keys == [f"{deep}/deep", "seg", "twice", "json"]
    assert rejected == sorted(
        [
            ("../evil.jpg", "PATH_OUTSIDE"),
            ("/etc/evil.jpg", "PATH_OUTSIDE"),
            ("two", "IMAGE_AMBIGUOUS"),
            ("noimage", "IMAGE_MISSING"),
            ("notext", "CAPTION_MISSING"),
            ("broken", "METADATA_BROKEN"),
            ("list", "METADATA_BROKEN"),
            ("twice", "KEY_REPEATED"),
            ("seg", "KEY_REPEATED"),
            ("link.jpg", "MEMBER_TYPE"),
            ("last", "CAPTION_EMPTY"),
        ]
    )
    assert "two" in outcome(path, image="png")[0]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_the_standard_library(tmp_path, format):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format) as archive:
        for i, name in enumerate(["a.txt", "b" * 90 + ".txt", "d" * 60 + "/" + "e" * 60, "é.txt"]):
            info = tarfile.TarInfo(name)
            info.size = i * 300
            archive.addfile(info, io.BytesIO(bytes([i]) * info.size))
        if format != tarfile.USTAR_FORMAT:
            info = tarfile.TarInfo("x" * 300)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"hello"))
    with tarfile.open(path) as archive:
        expected = [(m.name, archive.extractfile(m).read()) for m in archive]
    with path.open("rb") as handle:
        found = list(members(handle, lambda name: True))
    assert [(m.name, m.data) for m in found] == expected
    assert not any(m.bad for m in found)


def test_two_concatenated_tars(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(tmp_path / "1", [("a.jpg", JPEG), ("a.txt", b"a cat")])
    write_tar(tmp_path / "2", [("b.jpg", JPEG), ("b.txt", b"a dog")])
    path.write_bytes((tmp_path / "1").read_bytes() + (tmp_path / "2").read_bytes())
    assert outcome(path) == (["a", "b"], [])


def test_a_negative_size_is_damage(tmp_path):
    """Base-256 sizes may be negative; reading that many bytes would read all the rest."""
    path = tmp_path / "a.tar"
    write_samples(path, count=3)
    with tarfile.open(path) as archive:
        at = archive.getmember("0001.jpg").offset
    data = bytearray(path.read_bytes())
    data[at + 124 : at + 136] = b"\xff" * 12
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
    path.write_bytes(data)
    keys, rejected = outcome(path)
    assert keys == names(0, 2)
    assert [reason for _, reason in rejected] == ["IMAGE_MISSING", "FILE_BROKEN"]


def test_a_long_name_whose_header_is_lost_names_nothing_else(tmp_path):
    path = tmp_path / "a.tar"
    deep = "x" * 200
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in (f"{deep}.jpg", "b.jpg", "b.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(JPEG) if name.endswith("jpg") else 5
            archive.addfile(info, io.BytesIO(JPEG if name.endswith("jpg") else b"a cat"))
    data = bytearray(path.read_bytes())
    data[2 * BLOCK : 2 * BLOCK + 8] = b"damaged!"
    path.write_bytes(data)
    keys, rejected = outcome(path)
    assert (keys, [reason for _, reason in rejected]) == (["b"], ["FILE_BROKEN"])


def test_every_single_byte_overwritten_is_survived(tmp_path):
    """Whichever byte of a header is damaged: no crash, and all other rows are read."""
    path = tmp_path / "a.tar"
    write_samples(path, count=3)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        at = archive.getmember("0001.jpg").offset
    source = source_at(path)
    for offset in range(0, BLOCK, 3):
        data = bytearray(whole)
        data[at + offset] ^= 0xFF
        path.write_bytes(data)
        (shard,) = list_shards(source)
        found = list(read_shard(source, shard))
        assert {"0000", "0002"} <= {item.key for item in found}
        assert any(getattr(item, "reason", None) for item in found)


def test_a_key_may_have_dots(tmp_path):
    """By WebDataset's rule all of ``v1`` would be one key and ``5_0001.jpg`` an ending."""
    keys = [f"v1.5_{i:04d}" for i in range(200)] + ["0003", "3.a.b", "sub.dir/x.y"]
    members = [m for k in keys for m in ((f"{k}.jpg", JPEG), (f"{k}.txt", b"a cat"))]
    write_tar(tmp_path / "a.tar", members)
    assert outcome(tmp_path) == (keys, [])
    meta = [m for k in keys for m in ((f"{k}.jpg", JPEG), (f"{k}.json", json_line(caption="cat")))]
    write_tar(tmp_path / "a.tar", meta)
    assert outcome(tmp_path) == (keys, [])


def test_dotted_keys_that_lack_something_are_counted(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [("v1.5.jpg", JPEG), ("v1.6.txt", b"a cat"), ("v1.7.jpg", JPEG), ("v1.7.txt", b"a cat")]
        + [(f"v2.{i}.jpg", JPEG) for i in range(100)],
    )
    keys, rejected = outcome(tmp_path)
    assert keys == ["v1.7"]
    incomplete = [(f"v2.{i}", "CAPTION_MISSING") for i in range(100)]
    assert rejected == sorted([("v1.5", "CAPTION_MISSING"), ("v1.6", "IMAGE_MISSING"), *incomplete])


def test_endings_of_two_parts_are_named_for_pictures_and_captions(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [
            ("1.input.jpg", JPEG),
            ("1.target.jpg", PNG),
            ("1.prompt.txt", b"a cat"),
            ("1.txt", b"a dog"),
            ("v1.5.input.jpg", JPEG),
            ("v1.5.PROMPT.TXT", b"a frog"),
        ],
    )
    source = source_at(tmp_path, image="input.jpg", caption="prompt.txt")
    rows, rejected = collect_rows(source)
    assert [(r.key, r.image, r.captions) for r in rows] == [
        ("1", JPEG, ("a cat",)),
        ("v1.5", JPEG, ("a frog",)),
    ]
    assert not rejected
    assert [r.image for r in collect_rows(source_at(tmp_path, image="target.jpg"))[0]] == [PNG]


def test_a_mask_belongs_to_its_picture_wherever_it_stands(tmp_path):
    """Also between picture and text; and with metadata of its own."""
    mask = [("1.mask.png", PNG), ("1.mask.json", b"{}")]
    pair = [("1.jpg", JPEG), ("1.txt", b"a cat")]
    for content in (mask + pair, [pair[0], *mask, pair[1]], pair + mask):
        write_tar(tmp_path / "a.tar", [*content, ("2.jpg", JPEG), ("2.txt", b"a dog")])
        assert outcome(tmp_path) == (["1", "2"], [])


def test_a_tar_with_all_pictures_first_is_rejected_for_its_order(tmp_path):
    names = [f"{i:03d}" for i in range(20)]
    pictures, texts = [(f"{n}.jpg", JPEG) for n in names], [(f"{n}.txt", b"a cat") for n in names]
    incomplete = [("lonely.jpg", JPEG), ("lonely.jpg", JPEG)]
    for content in (pictures + texts, texts + pictures):
        write_tar(tmp_path / "a.tar", content + incomplete)
        rows, rejected = collect_rows(source_at(tmp_path))
        assert not rows
        assert sorted((b.key, b.reason.name) for b in rejected) == [
            *((n, "MEMBER_ORDER") for n in names),
            ("lonely", "CAPTION_MISSING"),
            ("lonely", "CAPTION_MISSING"),
        ]
        assert "--sort=name" in rejected[0].detail


def test_json_nested_without_end_is_one_bad_row(tmp_path):
    deep = b'{"caption":' + b"[" * 200_000
    write_tar(tmp_path / "a.tar", [("1.jpg", JPEG), ("1.json", deep)])
    assert outcome(tmp_path) == ([], [("1", "METADATA_BROKEN")])


def test_a_tar_without_members_is_reported_by_the_plan(tmp_path):
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        write_tar(tmp_path / name, [], mode)
    with pytest.raises(ValueError, match="hold no row"):
        list_shards(source_at(tmp_path))
    write_tar(tmp_path / "c.tar", [("1.jpg", JPEG), ("1.txt", b"a cat")])
    assert outcome(tmp_path) == (["1"], [])
