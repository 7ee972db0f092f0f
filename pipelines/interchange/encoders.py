"""Writes the encoders of an ensemble into an exported folder, in their own formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ediffi_core.encoders import CLIP, TextEncoder
from ediffi_core.pretrained import CONFIG, FORMAT
from ediffi_core.published import resolve_source
from pipelines.models.encoders import (
    check_trained_with,
    encoders_of,
    load_clip,
    load_extra_encoders,
    load_t5,
)
from pipelines.store.artifacts import Store

ENCODERS = "encoders"
"""Subfolder of the encoders."""

LEFT_OUT = (".*", "*.h5", "*.msgpack", "*.ot", "*.onnx", "onnx", "openvino")
"""Hidden files, and copies of the weights for other frameworks."""


def export_encoders(
    store: Store,
    d: Mapping[str, Any],
    folder: Path,
    reference: bool,
    tell: Callable[[str], None],
) -> None:
    """Write the encoders and their ``config.json``.

    Folders are copied as they are. Published encoders are loaded and saved again, so that T5's
    decoder and copies for other frameworks stay out.

    Args:
        d: the ensemble's manifest.
        reference: name published encoders instead.

    Raises:
        ValueError: An encoder cannot be found or loaded.
    """
    sources = encoders_of(store, d)
    trained_with = d.get("trained_with") or {}
    clip_identity = trained_with.get("clip", {})
    load: dict[str, Callable[[], TextEncoder | CLIP]] = {
        "t5": partial(load_t5, sources),
        "clip": partial(load_clip, sources, trained_with=clip_identity),
    }
    models = {"t5": sources["t5"], "clip": sources["clip"]}
    for name, more in sources.get("more", {}).items():
        load[name] = partial(_load_further, name, more)
        models[name] = more["model"]
    folder.mkdir()
    places = {}
    identities = {
        role: {k: v for k, v in identity.items() if k != "name"}  # it may be a path
        for role, identity in trained_with.items()
    }
    for role, model in models.items():
        tell(f"encoder {role}")
        source = Path(resolve_source(model)).expanduser()
        if source.is_dir():
            copy_folder(source, folder / role)
        elif not reference:
            encoder = load[role]()
            check_trained_with({role: encoder}, trained_with)
            how = save(encoder, model, folder / role)
            identities[role] = identities.get(role, {}) | {"how": how}
        named = reference and not source.is_dir()
        places[role] = {"name": model} if named else {"folder": role}
    config = {
        "_class_name": "EdiffiEncoders",
        "format": FORMAT,
        "t5": {**places["t5"], "dtype": sources.get("t5_dtype", "float32")},
        "clip": {
            **places["clip"],
            "pretrained": sources.get("clip_pretrained"),
            "follow_tag": not clip_identity or "how" in clip_identity,
        },
        "more": {
            name: {**places[name], "kind": more["kind"], "dim": more["dim"]}
            for name, more in sources.get("more", {}).items()
        },
        "trained_with": identities,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load_further(name: str, settings: Mapping[str, Any]) -> TextEncoder:
    return load_extra_encoders({"more": {name: settings}})[name][0]


def copy_folder(source: Path, target: Path) -> None:
    """Copy an encoder's folder, without hidden files and copies for other frameworks."""
    has_safetensors = any(source.glob("*.safetensors"))
    left_out = (*LEFT_OUT, *(("*.bin", "*.pt") if has_safetensors else ()))
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*left_out))


def save(encoder: TextEncoder | CLIP, name: str, folder: Path) -> str:
    """Save a loaded encoder as a folder in its own format.

    Args:
        name: its published name.

    Returns:
        The recipe of the encoder as it loads from the folder: a published CLIP describes the same
        preprocessing in other words.
    """
    if not isinstance(encoder, CLIP):
        encoder.model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        return encoder.recipe
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    found = open_clip.get_model_config(name.replace("/", "-")) or {}
    config = {**found, "quick_gelu": bool(found.get("quick_gelu")) or encoder.follows_tag}
    described = {"model_cfg": config, "preprocess_cfg": encoder.model.visual.preprocess_cfg}
    text = json.dumps(described, indent=2) + "\n"
    (folder / "open_clip_config.json").write_text(text, encoding="utf-8")
    weights = {k: v.contiguous() for k, v in encoder.model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return CLIP(str(folder)).recipe
