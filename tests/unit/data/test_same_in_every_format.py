"""Given the same pairs with the same defects, every format accepts and rejects the same rows."""

import csv
import json
import random

import pytest
from dirty import CAPTIONS, IMAGES, JPEG, collect_rows, reasons, source_at, write_tar

from pipelines.data.rows import Reason

NAMES = ["{}", "sub/{}", "v1.5_{}", "sub.dir/{}.x", "a b {}", "é{}", "IMG_{}", "_{}", "x=1/{}"]

PAIRS = 60


def pairs_of(seed):
    """Key → picture and captions, either of them None where it is missing."""
    rng = random.Random(seed)
    images = [image for image, _ in IMAGES.values()]
    captions = [text for text, _ in CAPTIONS.values()]
    found = {}
    for i in range(PAIRS):
        image = rng.choice([JPEG, JPEG, rng.choice(images), None])
        texts = [f"a cat {i}".encode(), rng.choice(captions), b"a dog"]
        several = [f"one {i}".encode(), f"two {i}".encode()]
        given = rng.choice([texts[:1], texts[1:2], several, None if image else texts[:1]])
        if given and not given[0].strip():
            given = [b" "]
        found[rng.choice(NAMES).format(i)] = (image, given)
    return found


def text_of(caption):
    return caption.decode("utf-8", "surrogateescape")


def write_pictures(root, pairs):
    for key, (image, _) in pairs.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        if image is not None:
            (root / f"{key}.jpg").write_bytes(image)


def as_folder(root, pairs):
    write_pictures(root, pairs)
    for key, (_, captions) in pairs.items():
        if captions is not None:
            (root / f"{key}.txt").write_bytes(b"\n".join(captions))


def as_csv(root, pairs):
    write_pictures(root, pairs)
    with (root / "captions.csv").open("w", newline="", errors="surrogateescape") as file:
        table = csv.writer(file, quoting=csv.QUOTE_ALL)
        table.writerow(["file_name", "text"])
        for key, (_, captions) in pairs.items():
            table.writerows([f"{key}.jpg", text_of(c)] for c in captions or ())


def as_json_lines(root, pairs):
    write_pictures(root, pairs)
    with (root / "metadata.jsonl").open("w") as file:
        for key, (_, captions) in pairs.items():
            line = {"file_name": f"{key}.jpg", "caption": captions and [*map(text_of, captions)]}
            file.write(json.dumps(line) + "\n")


def as_coco(root, pairs):
    write_pictures(root, pairs)
    images = [{"id": i, "file_name": f"{key}.jpg"} for i, key in enumerate(pairs)]
    captions = [
        {"image_id": i, "caption": text_of(c)}
        for i, (_, given) in enumerate(pairs.values())
        for c in given or ()
    ]
    whole = {"images": images, "annotations": captions}
    (root / "captions_all.json").write_text(json.dumps(whole))


def as_parquet(root, pairs):
    import pyarrow as pa

    rows = [
        {"key": k, "image": i, "caption": None if c is None else c} for k, (i, c) in pairs.items()
    ]
    for name, part in (("a", rows[::2]), ("b", rows[1::2])):
        lists = pa.array([r["caption"] for r in part], pa.list_(pa.binary()))
        texts = pa.ListArray.from_arrays(
            lists.offsets, lists.values.view(pa.string()), mask=lists.is_null()
        )
        columns = {"key": [r["key"] for r in part], "image": [r["image"] for r in part]}
        pa.parquet.write_table(pa.table({**columns, "caption": texts}), root / f"{name}.parquet")


def as_tar(root, pairs):
    members = []
    for key, (image, captions) in pairs.items():
        members += [(f"{key}.jpg", image)] if image is not None else []
        members += [(f"{key}.txt", b"\n".join(captions))] if captions is not None else []
    write_tar(root / "a.tar", members)


def as_tar_of_json(root, pairs):
    members = []
    for key, (image, captions) in pairs.items():
        members += [(f"{key}.jpg", image)] if image is not None else []
        fields = {} if captions is None else {"caption": [*map(text_of, captions)]}
        members.append((f"{key}.json", json.dumps(fields).encode()))
    write_tar(root / "a.tar.gz", members, "w:gz")


FORMATS = [as_folder, as_csv, as_json_lines, as_coco, as_parquet, as_tar, as_tar_of_json]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_rows_are_kept_and_refused_for_the_same_reasons(tmp_path, seed):
    pairs = pairs_of(seed)
    found = {}
    for write in FORMATS:
        home = tmp_path / write.__name__
        home.mkdir()
        write(home, pairs)
        settings = {"format": "folder"} if write is as_folder else {}
        rows, rejected = collect_rows(source_at(home, **settings))
        refused = [bad for bad in rejected if bad.reason != Reason.CAPTION_DROPPED]
        assert len(rows) + len(refused) == len(pairs), write.__name__
        kept = {row.key: (row.image, row.captions) for row in rows}
        assert len(kept) == len(rows)
        found[write.__name__] = (kept, reasons(rejected))
    kept, refused = found["as_folder"]
    assert len(kept) > 10 and len(refused) > 10
    for name, outcome in found.items():
        assert outcome == (kept, refused), name
