"""One file that captions a folder's pictures: CSV, JSON lines, or COCO's ``captions_*.json``.

It is checked for the plan as a Parquet file's columns are: what would cost every row is said there.
"""

from __future__ import annotations

import csv
import fnmatch
import itertools
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.data.captions import listed
from pipelines.data.files import File, Folder, Place
from pipelines.data.files import find as find_files
from pipelines.data.formats.shard import caption_fields, fields, first_of, is_image, is_text, stem
from pipelines.data.rows import BadRow, Reason
from pipelines.spec.data import Source

NAMES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
COCO = "captions_*.json"
OTHERS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".xlsx")
"""What may be meant as a caption file, though it is not read."""

FIRST_RECORDS = 100


@dataclass
class Line:
    """What one line of a caption file says."""

    number: int = field(repr=False)  # a line may move: no part of what is identified
    file: str = ""
    """A path relative to the data set's folder, or an address."""

    key: Any = None
    captions: list[Any] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    bad: Reason | None = None
    detail: str = ""

    @property
    def belongs_to(self) -> str:
        """What decides its run: the picture it names, or else its own text."""
        return stem(self.file) if self.file else self.detail


def is_coco(path: str) -> bool:
    return fnmatch.fnmatchcase(posixpath.basename(path).lower(), COCO)


def find(place: Place, files: list[File], *, coco: bool) -> str | None:
    """The caption file among a data set's files; ValueError if there are two."""
    found = [f.path for f in files if (is_coco(f.path) if coco else f.path.lower() in NAMES)]
    if len(found) > 1 and coco:
        raise ValueError(
            f"{place.folder} has {' and '.join(found[:3])}; set `path:` to one of them, such as "
            f"{place.full(found[0])}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{place.folder} has {' and '.join(found)}; keep the one that captions the pictures"
        )
    return found[0] if found else None


def coco_folder(path: str) -> Folder:
    """The data set of one of COCO's caption files: it, and the pictures it is about.

    Those of ``annotations/captions_val2017.json`` lie in ``val2017/`` beside ``annotations/``.
    """
    place, [file] = find_files(path)
    root, _, last = place.folder.rpartition("/")
    if last == "annotations":
        name = f"{last}/{file.path}"
        place, files = find_files(root)
    else:
        name = file.path
        place, files = find_files(place.folder)
    part = file.path[len("captions_") : -len(".json")].lower()
    pictures = [f for f in files if is_image(f.path)]
    own = [f for f in pictures if f"/{part}/" in f"/{f.path}".lower()]
    return Folder(place, [f for f in files if f.path == name] + (own or pictures))


def pictures_folder(source: Source, place: Place, path: str, pictures: set[str]) -> str:
    """Where the pictures lie that a COCO file names, which names no folder; relative."""
    folders: dict[str, str] = {}
    for picture in sorted(pictures):
        folder, _, name = picture.rpartition("/")
        folders.setdefault(name, folder)
    for line in itertools.islice(table(source, place, path), FIRST_RECORDS):
        if line.file in pictures:
            return ""
        if (found := folders.get(posixpath.basename(line.file))) is not None:
            return found.removesuffix(posixpath.dirname(line.file)).rstrip("/")
    return ""


def check(source: Source, home: Folder, *, coco: bool) -> None:
    """Holds the settings against the head and the first records of the caption file, if any.

    Raises:
        ValueError: The file is of another encoding, holds no record, or lacks a column; or nothing
            captions the pictures.
    """
    place, path = home.place, find(home.place, home.files, coco=coco)
    if path is None:
        texts = {stem(f.path) for f in home.files if is_text(f.path)}
        if texts.isdisjoint(stem(f.path) for f in home.files if is_image(f.path)):
            raise _absent(place, home.files)
        return
    full = place.full(path)
    with place.open(path) as handle:
        start = handle.read(512)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(0) * 4 > len(start):
        raise ValueError(f"{full} is in UTF-16 or UTF-32; save it as UTF-8")
    with place.open(path) as handle:
        head = _head(handle) if path.lower().endswith(".csv") else []
    with place.open(path) as handle:
        first = itertools.islice(_records(path, handle), FIRST_RECORDS)
        records = [record for _, record in first if isinstance(record, dict)]
    names = head or [*dict.fromkeys(name for record in records for name in record)]
    if not names and is_coco(path):
        raise ValueError(
            f"{full} holds no record as COCO's captions are; if something else captions the "
            "pictures, set `format: folder`"
        )
    if not names:
        raise ValueError(f"{full} holds no record; give it a line for every picture")
    image = _image_fields(source)
    named = [
        image,
        caption_fields(source),
        *((name,) for name in (source.key, *source.scores) if name),
    ]
    for one in named:
        there = [name for name in one if name in names]
        if not there:
            raise ValueError(_lacking(full, one, names, csv=bool(head)))
        if head.count(there[0]) > 1:
            raise ValueError(f"{full} has two columns {there[0]!r}; rename one of them")
    if not records:
        raise ValueError(f"{full} holds no record that can be read; see its second line")


def _absent(place: Place, files: list[File]) -> ValueError:
    """Said where nothing captions the pictures."""
    others = [f.path for f in files if f.path.lower().endswith(OTHERS)]
    nested = [p for p in others if posixpath.basename(p).lower() in NAMES]
    if nested:
        hint = f"set `path:` to {place.full(posixpath.dirname(nested[0]))}, which has one"
        hint += f" ({', '.join(nested[:3])})"
    elif others:
        hint = f"if {' or '.join(others[:3])} captions them, make it captions.csv or captions.jsonl"
    else:
        hint = "add them"
    return ValueError(
        f"{place.folder} has no captions: neither a .txt of a picture's name beside it, nor "
        f"captions.csv or .jsonl at the root; {hint}"
    )


def _lacking(full: str, wanted: tuple[str, ...], names: list[str], *, csv: bool) -> str:
    named, there = " or ".join(map(repr, wanted)), ", ".join(map(repr, names[:20]))
    said = f"{full} has no column {named}, only {there}"
    if csv and any(c in "".join(names) for c in ";\t|") and len(names) < 2:
        return f"{said}; separate the columns by commas"
    if csv and any(map(is_image, names)):
        return f"{said}; its first line must name the columns, such as file_name,caption"
    if csv and {name.strip() for name in names} & set(wanted):
        return f"{said}; remove the spaces in its first line"
    return f"{said}; name yours with `image:`, `caption:`, `key:` and `scores:` beside `path:`"


def unused(place: Place, path: str, line: Line | None) -> ValueError:
    """Said where no line of the file captions a picture that is there."""
    if line is None or line.bad:
        why = f"such as line {line.number}: {line.bad}" if line else "and no line"
        return ValueError(f"{place.full(path)} has no line that can be read, {why}")
    if all(caption is None or caption == "" for caption in line.captions):
        return ValueError(f"{place.full(path)} captions no picture: line {line.number} has no text")
    return ValueError(
        f"{place.full(path)} names no picture that is there, but such as {line.file!r} in line "
        f"{line.number}; write paths relative to {place.folder}"
    )


def table(source: Source, place: Place, path: str, pictures: str = "") -> Iterator[Line]:
    """The lines of a caption file, one at a time.

    Args:
        pictures: the folder that the names of pictures are relative to.
    """
    with place.open(path) as handle:
        for number, record in _records(path, handle):
            if isinstance(record, str):
                yield Line(number, bad=Reason.METADATA_BROKEN, detail=record[:200])
                continue
            file = first_of(record, _image_fields(source))
            if not isinstance(file, str) or not file:
                yield Line(number, bad=Reason.IMAGE_MISSING, detail=f"{record}"[:200])
                continue
            try:
                yield Line(
                    number,
                    file if "://" in file else place.inside(posixpath.join(pictures, file)),
                    record.get(source.key) if source.key else None,
                    listed(first_of(record, caption_fields(source))),
                    {name: record.get(name) for name in source.scores},
                )
            except BadRow as bad:
                yield Line(number, bad=bad.reason, detail=bad.detail)


def _image_fields(source: Source) -> tuple[str, ...]:
    return fields(source.image, "image", ("file", "file_name"))


Records = Iterator[tuple[int, dict[str, Any] | str]]
"""Each line's number and fields, or its text if it has none."""


def _records(path: str, handle: Any) -> Records:
    if is_coco(path):
        return _coco(handle)
    return _json_lines(handle) if path.lower().endswith(".jsonl") else _csv_lines(handle)


def _coco(handle: Any) -> Records:
    """An annotation with its picture's fields; numbered from 1, as there are no lines."""
    try:
        whole = json.loads(handle.read().decode("utf-8-sig", "surrogateescape"))
        images = {image["id"]: image for image in whole["images"]}
        annotations = list(enumerate(whole["annotations"], 1))
        found = [(i, {**images.get(a["image_id"], {}), **a}) for i, a in annotations]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield 1, f"not as COCO's captions are: {type(error).__name__} {error}"
        return
    yield from found


def _json_lines(handle: Any) -> Records:
    for number, raw in enumerate(handle, 1):
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        yield number, record if isinstance(record, dict) else text


def _csv(handle: Any) -> Any:
    text = (
        line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape") for line in handle
    )
    return csv.reader(text, strict=True)


def _head(handle: Any) -> list[str]:
    try:
        return next((row for row in _csv(handle) if row), [])
    except csv.Error:
        return []


def _csv_lines(handle: Any) -> Records:
    """A row of another width than the head is broken: a comma too many."""
    rows = _csv(handle)
    head: list[str] = []
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield rows.line_num, f"{error} (line {rows.line_num})"
            continue
        if not head:
            head = row
        elif row and len(row) != len(head):
            yield rows.line_num, ",".join(row)
        elif row:
            yield rows.line_num, dict(zip(head, row, strict=True))
