"""The plan reports what is wrong with a whole caption file, and what the file has."""

import json

import pytest
from dirty import JPEG, collect_rows, encoded, json_line, noise, source_at

from pipelines.data.sources import list_shards


def folder_of(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


PICTURE = {"1.jpg": JPEG}
CASES = {
    "semicolons": (
        "metadata.csv",
        "file_name;text\n1.jpg;a dog\n",
        "separate the columns by comma",
    ),
    "tabs": ("metadata.csv", "file_name\ttext\n1.jpg\ta dog\n", "separate the columns by commas"),
    "a space in the head": ("captions.csv", "file_name, text\n1.jpg, a dog\n", "remove the spaces"),
    "no head": ("captions.csv", "1.jpg,a dog\n2.jpg,a cat\n", "first line must name the columns"),
    "other heads": ("captions.csv", "file_name,prompt\n1.jpg,a\n", "only 'file_name', 'prompt'"),
    "no picture": ("captions.csv", "url,text\n1.jpg,a\n", "no column 'image' or 'file' or"),
    "two of a name": ("captions.csv", "file,text,text\n1.jpg,a,b\n", "two columns 'text'"),
    "empty": ("captions.csv", "", "holds no record"),
    "a head alone": ("captions.csv", "file,text\n", "no record that can be read"),
    "utf-16": ("captions.csv", "file,text\n1.jpg,a\n".encode("utf-16"), "UTF-16"),
    "utf-16 without its mark": ("captions.jsonl", '{"file": 1}'.encode("utf-16-le"), "UTF-16"),
    "other keys": ("captions.jsonl", json_line(file_name="1.jpg", prompt="a"), "'prompt'; name"),
    "one JSON": ("captions.jsonl", '[{"file_name": "1.jpg",\n "text": "a"}]', "holds no record"),
    "blank": ("captions.jsonl", "\n \n", "holds no record"),
    "pictures elsewhere": ("captions.csv", "file,text\nimg/1.jpg,a\n", "matches no picture"),
    "no ending": ("captions.csv", "file,text\n1,a dog\n", "line 2 names '1'"),
    "no text": ("captions.csv", "file,text\n1.jpg,\n", "has no text"),
    "nested": ("train/metadata.jsonl", json_line(file_name="1.jpg", text="a"), "/train, which"),
    "another name": ("labels.csv", "file,text\n1.jpg,a\n", "if labels.csv captions them, make it"),
    "tsv": ("captions.tsv", "file\ttext\n1.jpg\ta\n", "if captions.tsv captions them"),
    "none": ("notes.md", "about", "has no captions"),
    "texts of other names": ("one.txt", "a dog", "has no captions"),
}


@pytest.mark.parametrize(("name", "text", "message"), CASES.values(), ids=CASES.keys())
def test_a_caption_file_of_no_use_is_refused_by_the_plan(tmp_path, name, text, message):
    folder_of(tmp_path, PICTURE | {name: text})
    with pytest.raises(ValueError) as error:
        list_shards(source_at(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("setting", [{"key": "id"}, {"scores": ["beauty"]}, {"caption": "alt"}])
@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl"])
def test_a_column_that_is_asked_for_and_not_there(tmp_path, setting, name):
    rows = {
        "captions.csv": "file,text\n1.jpg,a\n",
        "captions.jsonl": json_line(file="1.jpg", text="a"),
    }
    folder_of(tmp_path, PICTURE | {name: rows[name]})
    with pytest.raises(ValueError, match=r"has no column '(id|beauty|alt)', only 'file', 'text'"):
        list_shards(source_at(tmp_path, **setting))


@pytest.mark.parametrize("name", ["CAPTIONS.CSV", "Metadata.jsonl", "a.TXT"])
def test_the_case_of_letters_in_a_name_does_not_matter(tmp_path, name):
    rows = {"csv": "file,text\na.JPG,a dog\n", "jsonl": json_line(file="a.JPG", text="a dog")}
    folder_of(tmp_path, {"a.JPG": JPEG, name: rows.get(name.lower().partition(".")[2], "a dog")})
    rows, rejected = collect_rows(source_at(tmp_path))
    assert [(r.key, r.captions) for r in rows] == [("a", ("a dog",))] and not rejected


def test_half_an_emoji_in_a_name_costs_its_line_alone(tmp_path):
    lines = [
        json_line(file_name="1.jpg", caption="a dog"),
        json_line(file_name="2\ud83d.jpg", caption="x"),
        json_line(file_name="../3\ud83d.jpg", caption="x"),
        json_line(caption="names \ud83d nothing"),
        b'{"file_name": "\xff.jpg", "caption": "x"}\n',
    ]
    folder_of(tmp_path, PICTURE | {"captions.jsonl": b"".join(lines)})
    rows, rejected = collect_rows(source_at(tmp_path))
    assert [row.key for row in rows] == ["1"]
    assert sorted(bad.reason.name for bad in rejected) == [*["IMAGE_MISSING"] * 3, "PATH_OUTSIDE"]
    for bad in rejected:
        assert (bad.key + bad.source + bad.detail).encode()


def test_what_is_printed_of_a_row_has_no_control_characters(tmp_path):
    """A terminal obeys them; the row's own caption is refused for them all the same."""
    lines = [
        json_line(file_name="1.jpg", caption="a dog"),
        json_line(file_name="\x1b[2J.jpg", caption="a\nb"),
        b"{\x1b[31m\x07\n",
    ]
    folder_of(tmp_path, PICTURE | {"captions.jsonl": b"".join(lines)})
    rejected = collect_rows(source_at(tmp_path))[1]
    assert len(rejected) == 2
    assert all((bad.key + bad.source + bad.detail).isprintable() for bad in rejected)


def coco(images, annotations):
    return json.dumps(
        {
            "info": {},
            "images": [{"id": i, "file_name": name} for i, name in images.items()],
            "annotations": [
                {"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(annotations)
            ],
        }
    )


def write_coco(root):
    names = {1: "000000000001.jpg", 2: "000000000002.jpg", 3: "000000000003.jpg"}
    train = [(1, "a dog"), (2, "two cats"), (1, "a dog again"), (3, "gone"), (9, "of no picture")]
    pictures = {i: encoded(noise(seed=i)) for i in names}
    return folder_of(
        root,
        {
            "annotations/captions_train2017.json": coco(names, train),
            "annotations/captions_val2017.json": coco({5: "000000000005.jpg"}, [(5, "a frog")]),
            "annotations/instances_train2017.json": "{}",
            f"train2017/{names[1]}": pictures[1],
            f"train2017/{names[2]}": pictures[2],
            "train2017/000000000004.jpg": pictures[3],
            "val2017/000000000005.jpg": pictures[3],
        },
    )


def test_coco_is_read_as_it_is_published(tmp_path):
    home = write_coco(tmp_path)
    with pytest.raises(ValueError, match=r"set `path:` to one of them.*captions_train2017\.json"):
        list_shards(source_at(home))
    rows, rejected = collect_rows(source_at(home / "annotations" / "captions_train2017.json"))
    assert {row.source: row.captions for row in rows} == {
        "train2017/000000000001.jpg": ("a dog", "a dog again"),
        "train2017/000000000002.jpg": ("two cats",),
    }
    assert sorted((bad.key, bad.reason.name) for bad in rejected) == [
        ("line 5", "IMAGE_MISSING"),
        ("train2017/000000000003", "IMAGE_MISSING"),
        ("train2017/000000000004", "CAPTION_MISSING"),
    ]
    rows, rejected = collect_rows(source_at(home / "annotations" / "captions_val2017.json"))
    assert [row.key for row in rows] == ["val2017/000000000005"] and not rejected


def test_coco_beside_its_pictures(tmp_path):
    home = write_coco(tmp_path)
    (home / "annotations" / "captions_val2017.json").unlink()
    rows, rejected = collect_rows(source_at(home))
    assert len(rows) == 2
    assert {bad.key for bad in rejected if bad.reason.name == "CAPTION_MISSING"} == {
        "train2017/000000000004",
        "val2017/000000000005",
    }
    flat = folder_of(
        tmp_path / "flat", {"captions_x.json": coco({7: "1.jpg"}, [(7, "a dog")]), "1.jpg": JPEG}
    )
    assert [row.key for row in collect_rows(source_at(flat))[0]] == ["1"]


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', coco({1: "x.jpg"}, [(1, "a")])])
def test_coco_of_no_use_is_refused_by_the_plan(tmp_path, text):
    folder_of(tmp_path, PICTURE | {"captions_train.json": text})
    with pytest.raises(ValueError, match=r"train\.json (holds no record in|matches no picture)"):
        list_shards(source_at(tmp_path))
