"""Writes a trained ensemble as a folder that other programs load, in the layout of diffusers.

The layout is described in :mod:`ediffi_core.pretrained`, which reads it. Files arrive in a folder
beside the target, which is renamed at the end: the target is complete or not there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

import ediffi_core
from ediffi_core.checkpoint import Card, check_interval, read_checked, weights_sha256
from ediffi_core.loading import Residency
from ediffi_core.noise import Interval
from ediffi_core.pretrained import CASCADE, CONFIG, FORMAT, WEIGHTS, expert_config
from ediffi_core.stage_settings import DEFAULTS
from pipelines.formatting import byte_size
from pipelines.interchange import model_card
from pipelines.interchange.encoders import ENCODERS, export_encoders
from pipelines.models import averages
from pipelines.models.manifest import read_manifest
from pipelines.spec.sampling import Sampling
from pipelines.store.artifacts import Store
from pipelines.store.remote import StorageError
from pipelines.store.scratch import temp_suffix

MODEL_INDEX = "model_index.json"
PIPELINE = "EdiffiPipeline"
MODULE = "ediffi_core.diffusers_pipeline"

CODE = f'''"""The pipeline of this folder, for `DiffusionPipeline` with `custom_pipeline`.

Its code is in the package `ediffi_core`, of which this folder has a copy.
"""

try:
    from {MODULE} import {PIPELINE}
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{{error}}; install ediffi, or put this model's folder on the Python path (PYTHONPATH)"
    ) from error

__all__ = ["{PIPELINE}"]
'''

DTypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to write, besides the model itself."""

    dtype: DTypeName = "float32"
    """Type of the weights in the files."""

    residency: Residency = "all"
    """Where the experts are when the folder is loaded, unless the loader says otherwise."""

    reference_encoders: bool = False
    """Name published encoders instead of copying them."""

    license: str | None = None
    """License of the weights, as an identifier of the Hugging Face Hub; unknown if None."""


def export(
    manifest: Path,
    folder: Path,
    options: Options | None = None,
    *,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
    storage: str | None = None,
) -> int:
    """Write an ensemble as a folder that loads without its store.

    One expert at a time is in memory. Files are copied, never linked: whoever edits an export must
    not reach the store.

    Args:
        manifest: the ensemble's ``ensemble.json``.
        folder: where to write; created, with its parents.
        force: replace an earlier export in that place.
        progress: called with the name of each part before it is written.
        storage: folder or URL of the store, if it has moved since.

    Returns:
        The bytes written.

    Raises:
        ValueError: The manifest is not one; the folder holds something; the disk is full or not
            writable; or weights or encoders are missing or damaged.
    """
    options = options or Options()
    tell = progress or (lambda part: None)
    d = read_manifest(manifest, storage)
    store = Store.at(d["store"])
    _check_target(folder, force)
    scratch = folder.absolute().with_name(f".{folder.absolute().name}{temp_suffix()}.tmp")
    with _writing(folder, scratch):
        scratch.mkdir(parents=True)
        _check_space(store, d, scratch)
        stages = _export_cascade(store, d, scratch / CASCADE, options, tell)
        export_encoders(store, d, scratch / ENCODERS, options.reference_encoders, tell)
        index = {"_class_name": PIPELINE, CASCADE: [MODULE, "EdiffiCascade"]}
        index[ENCODERS] = [MODULE, "EdiffiEncoders"]
        _write_json(scratch / MODEL_INDEX, index)
        (scratch / "pipeline.py").write_text(CODE, encoding="utf-8")
        _copy_code(scratch)
        tell("model card")
        card = model_card.text(store, d, stages, options.license, options.dtype)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        size = sum(f.stat().st_size for f in scratch.rglob("*") if f.is_file())
        _put(scratch, folder)
    return size


def _check_target(folder: Path, force: bool) -> None:
    if folder.is_file():
        raise ValueError(f"{folder} is a file; name a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise ValueError(
            f"{folder} is not empty; name another folder, or add --force to replace it"
        )
    try:
        found = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != PIPELINE:
        raise ValueError(
            f"{folder} holds something else than an exported model, and --force would delete it; "
            "name another folder"
        )


def _check_space(store: Store, d: Mapping[str, Any], scratch: Path) -> None:
    paths = {weights["path"] for weights in d["weights"].values()}
    needed = sum(store.size(path) or 0 for path in paths)
    if made := d.get("encoders_folder"):
        needed += sum(store.files(made).values())
    if needed > (free := shutil.disk_usage(scratch).free):
        raise ValueError(
            f"the model needs {byte_size(needed)}, and {scratch.parent} has {byte_size(free)} "
            "free; choose another disk, or --dtype bfloat16"
        )


@contextlib.contextmanager
def _writing(folder: Path, scratch: Path) -> Iterator[None]:
    """Report failed writes in one line, and leave no part of the export behind."""
    try:
        yield
    except StorageError:  # of the store, with a message of its own
        raise
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}); name another folder") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(scratch: Path, folder: Path) -> None:
    """Rename the finished folder into its place, where there may be an earlier export."""
    if not folder.exists():
        scratch.rename(folder)
        return
    old = scratch.with_name(f".{folder.absolute().name}{temp_suffix()}.tmp")
    folder.rename(old)
    scratch.rename(folder)
    shutil.rmtree(old)


# -- denoisers -----------------------------------------------------------------------------------


def _export_cascade(
    store: Store,
    d: Mapping[str, Any],
    folder: Path,
    options: Options,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Write the experts and ``cascade/config.json``. → the stages as in that file, and more"""
    stages: list[dict[str, Any]] = []
    cards: dict[str, dict[str, Card]] = {}
    for stage in d["stages"]:
        name, slots = stage["name"], {}
        sampling = Sampling.from_settings(stage["sampling"])
        places: dict[str, str] = {}
        cards[name] = {}
        for slot, quantiles in stage["experts"].items():
            weights = d["weights"][f"{name}/{slot}"]
            interval = Interval(*quantiles)
            place = places.setdefault(weights["path"], f"{name}/{slot}")
            target = folder / place
            if not target.exists():
                tell(f"{name}/{slot}")
                home, path = _weights_file(store, weights, sampling.ema_length)
                with home.fetched(path) as source:
                    expert = weights["expert"]
                    card = _export_expert(source, expert, interval, target, options.dtype)
            else:  # the slot shares its weights with another
                card = cards[name][target.name]
                check_interval(target / WEIGHTS, card, interval)
            cards[name][slot] = card
            slots[slot] = {"expert": weights["expert"], "interval": quantiles, "folder": place}
        settings = sampling.model_dump(mode="json")
        stages.append(
            {
                "name": name,
                "resolution": stage["resolution"],
                "experts": slots,
                "sampling": {key: settings[key] for key in DEFAULTS},
            }
        )
    config = {
        "_class_name": "EdiffiCascade",
        "format": FORMAT,
        "model": d["model"],
        "residency": options.residency,
        "stages": stages,
    }
    _write_json(folder / CONFIG, config)
    lengths = {s["name"]: s["sampling"].get("ema_length") for s in d["stages"]}
    return [
        {**stage, "cards": cards[stage["name"]], "ema_length": lengths[stage["name"]]}
        for stage in stages
    ]


def _weights_file(
    store: Store, weights: Mapping[str, Any], ema_length: float | None
) -> tuple[Store, str]:
    """Store and path of an expert's weights, or of their average of another length."""
    if ema_length is not None:
        return averages.stored(store, weights["path"], ema_length)
    if store.size(weights["path"]) is None:
        raise ValueError(
            f"{store.full(weights['path'])} is missing, which is expert {weights['expert']}; run "
            "the pipeline again"
        )
    return store, weights["path"]


def _export_expert(
    source: Path, expert: str, interval: Interval, folder: Path, dtype: DTypeName
) -> Card:
    """Write an expert's weights and card."""
    folder.mkdir(parents=True)
    target = folder / WEIGHTS
    if dtype == "float32":
        shutil.copyfile(source, target)
        _, card = read_checked(target, expert=expert, interval=interval)
    else:
        weights, card = read_checked(source, expert=expert, interval=interval)
        card = _save(weights, card, target, getattr(torch, dtype))
    _write_json(folder / CONFIG, expert_config(card))
    return card


def _save(weights: Mapping[str, Tensor], card: Card, file: Path, dtype: torch.dtype) -> Card:
    """Write weights in another type. → their card"""
    cast = {
        name: (t.to(dtype) if t.is_floating_point() else t).contiguous()
        for name, t in weights.items()
    }
    card = replace(card, weights_sha256=weights_sha256(cast))
    save_file(cast, file, metadata={"ediffi": card.to_json()})
    return card


# -- code ----------------------------------------------------------------------------------------


def _copy_code(folder: Path) -> None:
    """Copy ediffi_core with its license, so that the folder loads where ediffi is not installed."""
    source = Path(ediffi_core.__file__).parent
    shutil.copytree(
        source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "README.md")
    )
    if license_text := _license_text(source.parent):
        (folder / source.name / "LICENSE").write_text(license_text, encoding="utf-8")


def _license_text(tree: Path) -> str | None:
    """The license of the code, of a source tree or of the installed distribution."""
    with contextlib.suppress(OSError):
        return (tree / "LICENSE").read_text(encoding="utf-8")
    with contextlib.suppress(PackageNotFoundError):
        return distribution("ediffi").read_text("licenses/LICENSE")
    return None


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
