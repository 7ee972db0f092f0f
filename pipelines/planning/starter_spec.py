"""The spec that ``ediffi init`` writes: stages and budgets sized to the data, with comments."""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.data.caption_file import is_coco_file
from pipelines.data.files import PARQUET_SUFFIXES, list_folders
from pipelines.data.inspect import Inspection, inspect
from pipelines.data.sources import TAR_SUFFIXES
from pipelines.spec.pipeline import Spec

MOST_LISTED = 100
"""More files than this are not listed in a spec, but put into folders."""

HELD_OUT = 0.02
"""The share of the data that is held out for validation, in whole files."""

EPOCHS = 50
"""How often the root expert sees each picture, at most."""

ROOT_IMAGES = 50_000_000
"""Training images of the root expert, at most; each child trains on a tenth."""

BATCHES = (256, 64, 16)
BATCHES_A_CHILD = 500
"""A batch size is chosen that gives a child so many steps, if the data allow it."""

ENOUGH = 0.5
"""A stage is written if this share of the pictures is large enough for it."""

CAPTIONS = 256
"""Captions of the evaluation, if the validation data has as many."""

COMMENT_COLUMN = 40

T5, CLIP = "google/t5-v1_1-xxl", "ViT-L-14"

ROLES = {
    "train": re.compile(r"(?:^|/)train(?:ing)?(?=[-_./0-9]|$)", re.I),
    "validation": re.compile(r"(?:^|/)(?:val|valid|validation|dev|test)(?=[-_./0-9]|$)", re.I),
}
COCO_ROLES = {
    "train": re.compile(r"captions_train[^/]*\.json$", re.I),
    "validation": re.compile(r"captions_val[^/]*\.json$", re.I),
}


@dataclass(frozen=True)
class Split:
    """Where training and validation data lie."""

    train: str | list[str]
    validation: str | list[str]
    how: str
    """How the validation data was chosen, in words."""


# -- validation data -----------------------------------------------------------------------------


def named_split(data: Sequence[str], *, follow_links: bool = False) -> Split | None:
    """The split that folder and file names make: ``train/`` and ``validation/``, and the like.

    None if the names make none.

    Raises:
        ValueError: A path is missing or not readable, or a split has too many files to be listed.
    """
    if len(data) > 1:
        return None
    (path,) = data
    if is_coco_file(path):
        sibling = re.sub(r"train(?=[^/]*$)", "val", path)
        is_there = sibling != path and _exists(sibling, follow_links)
        return Split(path, sibling, f"{sibling}, beside it") if is_there else None
    (folder,) = list_folders(path, follow_links=follow_links)
    names = [file.path for file in folder.files]
    if coco := [name for name in names if is_coco_file(name)]:
        found = {role: [n for n in coco if form.search(n)] for role, form in COCO_ROLES.items()}
        if not all(found.values()):
            return None
        one, other = (posixpath.join(path, found[role][0]) for role in COCO_ROLES)
        return Split(one, other, other)
    found = {role: [n for n in names if form.search(_part(n))] for role, form in ROLES.items()}
    if not all(found.values()) or set(found["train"]) & set(found["validation"]):
        return None
    # Of validation and test, the first is held out, the second is left alone.
    groups = sorted({_head(n, ROLES["validation"]) for n in found["validation"]}, key=_preferred)
    chosen = [n for n in found["validation"] if _head(n, ROLES["validation"]) == groups[0]]
    train, validation = (_place(path, names, files) for files in (found["train"], chosen))
    return Split(train, validation, f"{_head(chosen[0], ROLES['validation'])} in {path}, by name")


def _part(name: str) -> str:
    """What of a path may give it a role: of a picture its folder alone, as trains are drawn too."""
    is_data = name.lower().endswith((*PARQUET_SUFFIXES, *TAR_SUFFIXES))
    return name if is_data else f"{posixpath.dirname(name)}/"


def _exists(path: str, follow_links: bool) -> bool:
    try:
        return bool(list_folders(path, follow_links=follow_links))
    except ValueError:
        return False


def _head(name: str, form: re.Pattern[str]) -> str:
    """The part of a path up to the word that gives it its role."""
    found = form.search(name)
    return name[: found.end()] if found else name


def _preferred(head: str) -> tuple[int, str]:
    return ("test" in head.lower(), head)


def _place(root: str, names: list[str], files: list[str]) -> str | list[str]:
    """The folder that holds exactly these files, else the files."""
    folder = posixpath.commonpath(files) if len(files) > 1 else posixpath.dirname(files[0])
    if folder and [n for n in names if n.startswith(f"{folder}/")] == files:
        return posixpath.join(root, folder)
    if len(files) > MOST_LISTED:
        raise ValueError(
            f"{root} has {len(files):,} files such as {files[0]}; move the training and the "
            "validation files to folders of their own, named train and validation"
        )
    return _one([posixpath.join(root, name) for name in files])


def held_out(found: Inspection) -> Split:
    """The last files of a data set, held out for validation.

    Raises:
        ValueError: There are no files to hold out; says what to do.
    """
    files, first = found.files, found.folders[0]
    if not files:
        raise ValueError(
            f"{first} has no validation data; move a few hundred of its pictures, with their "
            "captions, to another folder and name that with --validation"
        )
    if len(files) == 1:
        raise ValueError(
            f"{files[0]} is one file, and part of the data must be held out for validation; write "
            "a few hundred of its pairs to another file and name that with --validation"
        )
    if len(files) > MOST_LISTED:
        raise ValueError(
            f"{first} has no validation data; move some of its {len(files):,} files to another "
            f"folder, such as {posixpath.basename(files[-1])}, and name that with --validation"
        )
    held, size = 1, found.file_bytes[-1]
    while size < HELD_OUT * sum(found.file_bytes) and held < len(files) // 2:
        held, size = held + 1, size + found.file_bytes[-held - 1]
    last = "file" if held == 1 else f"{held} files"
    return Split(
        _one(files[:-held]), _one(files[-held:]), f"the last {last} of {len(files)}, held out"
    )


def look(
    data: Sequence[str],
    validation: Sequence[str],
    *,
    follow_links: bool = False,
    **settings: Any,
) -> tuple[Inspection, Inspection, str]:
    """Inspect training and validation data.

    Args:
        data: Paths of the training data, or of data to split.
        validation: Paths of the validation data; empty to split them from ``data``.
        follow_links: Whether links may lead out of their folder.
        settings: As :func:`pipelines.data.inspect.inspect` takes them.

    Returns:
        Both, and in words how the validation data was chosen.

    Raises:
        ValueError: Data is missing or cannot be used, or cannot be split.
    """
    if not validation and any("::" in path for path in data):
        raise ValueError(
            f"{data[0]} is inside another file and cannot be split by files; give validation data "
            "with --validation"
        )
    for path in validation:
        if absolute(path).rstrip("/") in {absolute(p).rstrip("/") for p in data}:
            raise ValueError(
                f"--validation {path} is given as --data too; name other data, which is not "
                "trained on"
            )
    settings["follow_links"] = follow_links
    with _errors_name("--data"):
        if validation:
            split: Split | None = Split(_one(data), _one(validation), "as given")
        else:
            split = named_split(data, follow_links=follow_links)
        if split is None:
            split = held_out(inspect(_one(data), **settings))
        train = inspect(split.train, **settings)
    with _errors_name("--validation" if validation else "--data"):
        return train, inspect(split.validation, **settings), split.how


@contextlib.contextmanager
def _errors_name(option: str) -> Iterator[None]:
    """Replace a spec's keys by options of ``ediffi init`` in the errors of the readers.

    Args:
        option: The option that names the data.
    """
    names = {
        "`image:`, `caption:`, `key:` and `scores:` beside `path:`": "--image and --caption",
        "set `path:` to": f"set {option} to",
        "`path:`": option,
        "`format:`": "--format",
        "`urls:`": "--urls",
        "write `follow_links: true` beside": "give --follow-links beside",
        "`follow_links: true`": "--follow-links",
    }
    try:
        yield
    except ValueError as error:
        message = str(error)
        for key, name in names.items():
            message = message.replace(key, name)
        raise ValueError(message) from error


def _one(paths: Sequence[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


# -- the spec ------------------------------------------------------------------------------------


def check_encoder(option: str, name: str) -> str:
    """An encoder's name, or its folder in full.

    Args:
        option: ``--t5`` or ``--clip``, for the error.

    Raises:
        ValueError: It is a path to no folder, or a CLIP that OpenCLIP does not know.
    """
    from ediffi_core.published import is_path, published_clip, resolve_source

    folder = Path(resolve_source(name)).expanduser()
    if folder.is_dir():
        return name if resolve_source(name) != name else str(folder.absolute())
    if is_path(name):
        raise ValueError(f"{option} {name} is no folder; give an encoder's folder, or its name")
    if option == "--clip" and published_clip(name) is None:
        raise ValueError(
            f"--clip {name} is neither a folder nor a model of OpenCLIP, such as {CLIP}"
        )
    return name


def name_for(file: Path) -> str:
    """A pipeline's name for a spec's file name."""
    return re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-") or "my-pictures"


@dataclass(frozen=True)
class Budget:
    """Images and cadence of a stage's experts, in whole batches."""

    batch: int
    root: int
    child: int

    @staticmethod
    def of(pairs: int) -> Budget:
        """For so many pairs: an expert sees a picture at most :data:`EPOCHS` times."""
        root = min(ROOT_IMAGES, EPOCHS * pairs)
        fits = (b for b in BATCHES if root // 10 >= b * BATCHES_A_CHILD)
        batch = next(fits, BATCHES[-1])
        up = [max(1, -(-images // batch)) * batch for images in (root, root // 10)]
        return Budget(batch, *up)

    @property
    def warmup(self) -> int:
        return min(2_000_000, self.child // 4)

    @property
    def halflife(self) -> int:
        return min(2_000_000, max(1, self.child // 4))

    @property
    def checkpoint(self) -> int:
        return min(500_000, max(self.batch, self.child // 4))


def stages(found: Inspection) -> list[tuple[str, int, str]]:
    """Name, resolution and preset of the stages that suit the pictures.

    Raises:
        ValueError: The pictures are too small for any.
    """
    if found.share(64) >= ENOUGH:
        base = [("base", 64, "base64")]
        return base + ([("sr256", 256, "sr256")] if found.share(256) >= ENOUGH else [])
    if found.share(32) >= ENOUGH:
        return [("base", 32, "base64")]
    if found.share(16) >= ENOUGH:
        return [("base", 16, "demo")]
    raise ValueError(
        f"most pictures of {found.folders[0]} have a side of less than 16 pixels; the smallest "
        "network trains on 16"
    )


def text(
    name: str,
    train: Inspection,
    validation: Inspection,
    how: str,
    *,
    cpus: int,
    gpus: int,
    t5: str = T5,
    clip: str = CLIP,
) -> str:
    """A commented spec that plans as it is.

    Args:
        how: How the validation data was chosen.
        cpus: CPUs of the machine or cluster that will run it.
        gpus: Its GPUs.
        t5: A text encoder's name or folder.
        clip: A CLIP's name or folder.
    """
    chosen, budget = stages(train), Budget.of(train.pairs)
    workers = 1 << (min(gpus, budget.batch).bit_length() - 1) if gpus else 1
    smallest = chosen[0][1]
    out = [
        "# Written by `ediffi init`. `ediffi plan` shows what it would do, `ediffi run` runs it.",
        noted(f"name: {name}", "also the name of the trained model"),
        noted("storage: ediffi-store", "a folder, or s3://BUCKET/FOLDER"),
        noted(f"cpus: {max(2, cpus, workers)}", "that the run may use at once"),
        noted(f"gpus: {gpus}", "likewise" if gpus else "this machine has none"),
        "",
        "data:",
        "  train:",
        *_source(train, smallest),
        noted("  validation:", " ".join(how.split())),
        *_source(validation, smallest),
        "",
        *_encoders(t5, clip, gpus),
        "",
        "stages:",
    ]
    for stage, side, preset in chosen:
        out += _stage(stage, side, preset, budget, train, workers, gpus)
    captions = max(2, min(CAPTIONS, validation.pairs))
    out += ["", "evaluate:", noted(f"  captions: {captions}", "of the validation data, to draw")]
    if gpus:
        out.append("  gpus: 1")
    result = "\n".join(out) + "\n"
    Spec.model_validate(yaml.safe_load(result))
    return result


def noted(line: str, comment: str) -> str:
    """A line of YAML with a comment, aligned with the others where it is short."""
    return f"{line:<{COMMENT_COLUMN - 2}}  # {comment}"


def _source(found: Inspection, smallest: int) -> list[str]:
    source, out = found.source, []
    if isinstance(source.path, list):
        out += ["    path:", *(f"      - {scalar(absolute(p))}" for p in source.path)]
    elif source.path:
        out.append(f"    path: {scalar(absolute(source.path))}")
    for key in ("format", "image", "caption", "urls", "follow_links"):
        if key in source.model_fields_set:
            out.append(f"    {key}: {scalar(getattr(source, key))}")
    pairs = f"    pairs: {found.pairs}"
    out.append(noted(pairs, "for `ediffi plan --assume`" if found.exact else "about as many"))
    if share := 1 - found.share(smallest):
        left_out = f"leaves out {100 * share:.1f} % of the pictures"
        out.append(noted(f"    filters: {{min_side: {smallest}}}", left_out))
    return out


def _encoders(t5: str, clip: str, gpus: int) -> list[str]:
    out = [
        noted("encoders:", "by name, downloaded at the first run; or a folder"),
        f"  t5: {scalar(t5)}",
        f"  clip: {scalar(clip)}",
    ]
    if t5 == T5:
        out += [
            noted("  t5_dtype: bfloat16", "9.5 GB of memory instead of 19"),
            "  # Smaller ones, for a first test: t5: google/t5-v1_1-small, clip: ViT-B-32",
        ]
    if gpus:
        out += [
            "",
            noted("embedding:", "of captions and pictures, before training"),
            "  t5: {actors: 1, gpus: 0.5}",
            "  clip: {actors: 1, gpus: 0.5}",
            "  batch_tokens: auto",
            "  clip_batch: auto",
        ]
    return out


def _stage(
    name: str,
    side: int,
    preset: str,
    budget: Budget,
    found: Inspection,
    workers: int,
    gpus: int,
) -> list[str]:
    share, is_base = found.share(side), name == "base"
    seen = f"all noise levels; each picture {max(1, round(budget.root / found.pairs)):,} times"
    guidance = noted("    sampling: {guidance: 5.0}", "strength of the prompt in samples")
    out = [
        noted(f"  {name}:", "draws from noise" if is_base else "enlarges the stage before"),
        noted(f"    resolution: {side}", f"{100 * share:.0f} % of the pictures are large enough"),
        noted(f"    network: {{preset: {preset}}}", "or a network of your own"),
        guidance if is_base else "    sampling: {steps: 10}",
        "    training:",
        f"      batch: {budget.batch}",
        f"      warmup_images: {budget.warmup}",
        f"      ema_halflife_images: {budget.halflife}",
        *(["      precision: bfloat16"] if gpus else []),
        "    cadence:",
        f"      checkpoint_images: {budget.checkpoint}",
        f"      validate_images: {budget.checkpoint}",
        f"      log_images: {max(budget.batch, budget.checkpoint // 10)}",
        *([f"    workers: {{count: {workers}, gpus: 1, micro_batch: auto}}"] if gpus else []),
        noted("    experts:", "training images, in multiples of the batch"),
        noted(f"      E0_0: {{images: {budget.root}}}", seen),
        noted(f"      E1_1: {{images: {budget.child}}}", "σ ≥ 0.30, from E0_0"),
        noted(f"      E1_0: {{images: {budget.child}}}", "σ < 0.30, from E0_0"),
        "    ensemble: [E1_1, E1_0]",
    ]
    return out


def scalar(value: Any) -> str:
    """A value as YAML writes it in one line."""
    shown: str = yaml.safe_dump(value, width=10**6, allow_unicode=True, default_flow_style=True)
    return shown.removesuffix("...\n").strip()


def absolute(path: str) -> str:
    """A local path in full, so that the spec works from every folder."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
