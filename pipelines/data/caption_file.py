"""One file that captions a folder's pictures: CSV, JSON lines, or COCO's ``captions_*.json``.

The plan checks its columns, as it does for Parquet: an error that would reject every row is
reported before anything runs.
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

from pipelines.data.captions import as_list
from pipelines.data.files import File, Folder, Location, list_files
from pipelines.data.formats.shard import (
    candidate_fields,
    caption_fields,
    first_present,
    is_image,
    is_text,
    stem,
)
from pipelines.data.rows import Reason, RowError
from pipelines.spec.data import Source

NAMES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
COCO = "captions_*.json"
OTHERS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".xlsx")
"""Files that may be meant as caption files but are not read; for error messages."""

FIRST_RECORDS = 100


@dataclass
class Line:
    """One line of a caption file.

    Its repr is hashed into the identity of its shard (:mod:`pipelines.data.formats.folder`):
    renaming this class or a field of it changes the identity of stored data sets.
    """

    number: int = field(repr=False)  # not hashed: a line may move
    file: str = ""
    """A path relative to the data set's folder, or a URL."""

    key: Any = None
    captions: list[Any] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    bad: Reason | None = None
    detail: str = ""

    @property
    def belongs_to(self) -> str:
        """What assigns the line to a run: the picture that it names, or else its own text."""
        return stem(self.file) if self.file else self.detail


def is_coco_file(path: str) -> bool:
    """Whether a file is named like a COCO caption file."""
    return fnmatch.fnmatchcase(posixpath.basename(path).lower(), COCO)


def find_caption_file(location: Location, files: list[File], *, coco: bool) -> str | None:
    """The caption file among a data set's files, or None; ValueError if there are several."""
    found = [f.path for f in files if (is_coco_file(f.path) if coco else f.path.lower() in NAMES)]
    if len(found) > 1 and coco:
        raise ValueError(
            f"{location.folder} has {' and '.join(found[:3])}; set `path:` to one of them, such as "
            f"{location.full(found[0])}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{location.folder} has {' and '.join(found)}; keep only the one that "
            "captions the pictures"
        )
    return found[0] if found else None


def coco_folder(path: str, *, follow_links: bool = False) -> Folder:
    """The data set of one COCO caption file: the file and the pictures that it captions.

    For ``annotations/captions_val2017.json``, these are in ``val2017/`` beside ``annotations/``.
    """
    location, [file] = list_files(path, follow_links=follow_links)
    root, _, last = location.folder.rpartition("/")
    if last == "annotations":
        name = f"{last}/{file.path}"
        location, files = list_files(root, follow_links=follow_links)
    else:
        name = file.path
        location, files = list_files(location.folder, follow_links=follow_links)
    part = file.path[len("captions_") : -len(".json")].lower()
    pictures = [f for f in files if is_image(f.path)]
    own = [f for f in pictures if f"/{part}/" in f"/{f.path}".lower()]
    return Folder(location, [f for f in files if f.path == name] + (own or pictures))


def pictures_folder(source: Source, location: Location, path: str, pictures: set[str]) -> str:
    """The relative folder of the pictures that a COCO file names without their folder."""
    folders: dict[str, str] = {}
    for picture in sorted(pictures):
        folder, _, name = picture.rpartition("/")
        folders.setdefault(name, folder)
    for line in itertools.islice(read_lines(source, location, path), FIRST_RECORDS):
        if line.file in pictures:
            return ""
        if (found := folders.get(posixpath.basename(line.file))) is not None:
            return found.removesuffix(posixpath.dirname(line.file)).rstrip("/")
    return ""


def check(source: Source, home: Folder, *, coco: bool) -> None:
    """Check the spec's field names against the first records of the caption file, if there is one.

    Raises:
        ValueError: The file is not UTF-8, holds no record, or lacks a column; or the folder has no
            captions at all.
    """
    location, path = home.location, find_caption_file(home.location, home.files, coco=coco)
    if path is None:
        texts = {stem(f.path) for f in home.files if is_text(f.path)}
        if texts.isdisjoint(stem(f.path) for f in home.files if is_image(f.path)):
            raise _no_captions_error(location, home.files)
        return
    full = location.full(path)
    with location.open(path) as handle:
        start = handle.read(512)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(0) * 4 > len(start):
        raise ValueError(f"{full} is in UTF-16 or UTF-32; save it as UTF-8")
    with location.open(path) as handle:
        head = _csv_header(handle) if path.lower().endswith(".csv") else []
    with location.open(path) as handle:
        first = itertools.islice(_records(path, handle), FIRST_RECORDS)
        records = [record for _, record in first if isinstance(record, dict)]
    names = head or [*dict.fromkeys(name for record in records for name in record)]
    if not names and is_coco_file(path):
        raise ValueError(
            f"{full} holds no record in COCO's format; if another file captions the pictures, set "
            "`format: folder`"
        )
    if not names:
        raise ValueError(f"{full} holds no record; write a line for every picture")
    image = _image_fields(source)
    named = [
        image,
        caption_fields(source),
        *((name,) for name in (source.key, *source.scores) if name),
    ]
    for one in named:
        there = [name for name in one if name in names]
        if not there:
            raise ValueError(_missing_column(full, one, names, csv=bool(head)))
        if head.count(there[0]) > 1:
            raise ValueError(f"{full} has two columns {there[0]!r}; rename one of them")
    if not records:
        raise ValueError(f"{full} holds no record that can be read; check its second line")


def _no_captions_error(location: Location, files: list[File]) -> ValueError:
    """The error for a folder of pictures without captions."""
    others = [f.path for f in files if f.path.lower().endswith(OTHERS)]
    nested = [p for p in others if posixpath.basename(p).lower() in NAMES]
    if nested:
        hint = f"set `path:` to {location.full(posixpath.dirname(nested[0]))}, which has one"
        hint += f" ({', '.join(nested[:3])})"
    elif others:
        hint = f"if {' or '.join(others[:3])} captions them, make it captions.csv or captions.jsonl"
    else:
        hint = "add them"
    return ValueError(
        f"{location.folder} has no captions: neither a .txt with a picture's name beside it, nor "
        f"captions.csv or captions.jsonl at the root; {hint}"
    )


def _missing_column(full: str, wanted: tuple[str, ...], names: list[str], *, csv: bool) -> str:
    named, there = " or ".join(map(repr, wanted)), ", ".join(map(repr, names[:20]))
    message = f"{full} has no column {named}, only {there}"
    if csv and any(c in "".join(names) for c in ";\t|") and len(names) < 2:
        return f"{message}; separate the columns by commas"
    if csv and any(map(is_image, names)):
        return f"{message}; its first line must name the columns, such as file_name,caption"
    if csv and {name.strip() for name in names} & set(wanted):
        return f"{message}; remove the spaces in its first line"
    return f"{message}; name yours with `image:`, `caption:`, `key:` and `scores:` beside `path:`"


def no_match_error(location: Location, path: str, line: Line | None) -> ValueError:
    """The error for a caption file of which no line matches a picture."""
    if line is None or line.bad:
        why = f"such as line {line.number}: {line.bad}" if line else "and no line"
        return ValueError(f"{location.full(path)} has no line that can be read, {why}")
    if all(caption is None or caption == "" for caption in line.captions):
        return ValueError(
            f"{location.full(path)} captions no picture: line {line.number} has no text"
        )
    return ValueError(
        f"{location.full(path)} matches no picture; line {line.number} names {line.file!r}; "
        f"write paths relative to {location.folder}"
    )


def read_lines(source: Source, location: Location, path: str, pictures: str = "") -> Iterator[Line]:
    """Read the lines of a caption file, one at a time.

    Args:
        pictures: The folder that picture names are relative to.
    """
    with location.open(path) as handle:
        for number, record in _records(path, handle):
            if isinstance(record, str):
                yield Line(number, bad=Reason.METADATA_BROKEN, detail=record[:200])
                continue
            file = first_present(record, _image_fields(source))
            if not isinstance(file, str) or not file:
                yield Line(number, bad=Reason.IMAGE_MISSING, detail=f"{record}"[:200])
                continue
            try:
                yield Line(
                    number,
                    file if "://" in file else location.inside(posixpath.join(pictures, file)),
                    record.get(source.key) if source.key else None,
                    as_list(first_present(record, caption_fields(source))),
                    {name: record.get(name) for name in source.scores},
                )
            except RowError as bad:
                yield Line(number, bad=bad.reason, detail=bad.detail)


def _image_fields(source: Source) -> tuple[str, ...]:
    return candidate_fields(source.image, "image", ("file", "file_name"))


Records = Iterator[tuple[int, dict[str, Any] | str]]
"""Each line's number, with its fields or, if it cannot be parsed, its text."""


def _records(path: str, handle: Any) -> Records:
    if is_coco_file(path):
        return _coco(handle)
    return _json_lines(handle) if path.lower().endswith(".jsonl") else _csv_lines(handle)


def _coco(handle: Any) -> Records:
    """Annotations merged with their picture's fields; numbered from 1 in place of lines."""
    try:
        whole = json.loads(handle.read().decode("utf-8-sig", "surrogateescape"))
        images = {image["id"]: image for image in whole["images"]}
        annotations = list(enumerate(whole["annotations"], 1))
        found = [(i, {**images.get(a["image_id"], {}), **a}) for i, a in annotations]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield 1, f"not in COCO's format: {type(error).__name__} {error}"
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


def _csv_reader(handle: Any) -> Any:
    text = (
        line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape") for line in handle
    )
    return csv.reader(text, strict=True)


def _csv_header(handle: Any) -> list[str]:
    try:
        return next((row for row in _csv_reader(handle) if row), [])
    except csv.Error:
        return []


def _csv_lines(handle: Any) -> Records:
    """A row with more or fewer cells than the header is broken: it has a comma too many."""
    rows = _csv_reader(handle)
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
