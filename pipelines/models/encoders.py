"""Loading of the encoders that a spec or a trained ensemble names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ediffi_core.conditioning import Conditioning
from ediffi_core.encoders import CLIP, T5, EmbeddingKind, TextEncoder, clip_side, encode_prompts
from pipelines.models.manifest import checked_node
from pipelines.store.artifacts import Store


def encoder_sources(store: Store, folder: str | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Names or folders of the encoders.

    Args:
        folder: folder of a node that made T5 and CLIP; None to use those named in the spec.
        named: the spec's ``encoders`` settings.

    Raises:
        ValueError: A file of the folder is not what its node wrote.
    """
    if not folder:
        return dict(named)
    made = {role: str(store.verified(f"{folder}/{role}")) for role in ("t5", "clip")}
    return {**named, **made}


def encoders_of(store: Store, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Names or folders of an ensemble's encoders.

    Args:
        manifest: its ``ensemble.json``.

    Raises:
        ValueError: As of :func:`encoder_sources`; or the node that made them is another one.
    """
    folder = manifest.get("encoders_folder")
    if folder:
        checked_node(store, manifest, folder)
    return encoder_sources(store, folder, manifest["encoders"])


def load_t5(sources: Mapping[str, Any], device: str = "cpu") -> T5:
    """Load the T5 encoder; ValueError if it cannot be loaded."""
    with _loading("t5", sources["t5"]):
        return T5(
            sources["t5"], device=device, dtype=getattr(torch, sources.get("t5_dtype", "float32"))
        )


def load_clip(
    sources: Mapping[str, Any],
    device: str = "cpu",
    *,
    trained_with: Mapping[str, str] | None = None,
) -> CLIP:
    """Load the CLIP encoder; ValueError if it cannot be loaded.

    Args:
        trained_with: identity of the CLIP that the training shards were encoded with. Older shards
            lack the key ``how``; their CLIP used the activation of the model's own configuration.
    """
    with _loading("clip", sources["clip"]):
        return CLIP(
            sources["clip"],
            pretrained=sources.get("clip_pretrained"),
            device=device,
            follow_tag=trained_with is None or "how" in trained_with,
        )


def check_trained_with(
    encoders: Mapping[str, T5 | CLIP | TextEncoder], trained_with: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise ValueError for an encoder that differs from the one of the training shards."""
    for role, encoder in encoders.items():
        expected = trained_with.get(role, {}).get("how", encoder.recipe)
        if expected != encoder.recipe:
            raise ValueError(
                f"encoder {role} differs from the one that this ensemble was trained with "
                f"({encoder.recipe}; not {expected}): restore its configuration, or train again"
            )


def load_extra_encoders(
    sources: Mapping[str, Any], device: str = "cpu"
) -> dict[str, tuple[TextEncoder, EmbeddingKind]]:
    """Load ``encoders.more``; ValueError if one cannot be loaded, or has another width."""
    found: dict[str, tuple[TextEncoder, EmbeddingKind]] = {}
    for name, given in sources.get("more", {}).items():
        with _loading(f"more.{name}", given["model"]):
            encoder = TextEncoder(given["model"], device=device)
        if encoder.dim != given["dim"]:
            raise ValueError(
                f"encoder {name} ({given['model']}) has vectors of width {encoder.dim}; write "
                f"`dim: {encoder.dim}` instead of {given['dim']}"
            )
        found[name] = encoder, given["kind"]
    return found


def load_prompt_encoder(
    sources: Mapping[str, Any],
    trained_with: Mapping[str, Mapping[str, str]],
    device: str = "cpu",
) -> Callable[[Sequence[str]], Conditioning]:
    """Load all encoders of a trained model, as a function of prompts.

    Args:
        sources: from :func:`encoder_sources`.
        trained_with: identity of the encoders of the training shards.

    Raises:
        ValueError: An encoder cannot be loaded, or differs from the one of the training shards.
    """
    t5, more = load_t5(sources, device), load_extra_encoders(sources, device)
    clip = load_clip(sources, device, trained_with=trained_with.get("clip", {}))
    check_trained_with(
        {"t5": t5, "clip": clip, **{n: e for n, (e, _) in more.items()}}, trained_with
    )
    return partial(encode_prompts, t5, clip, more=more)


def side_for_clip(sources: Mapping[str, Any]) -> int:
    """Side in pixels of CLIP's input, without loading the model; ValueError if it is unknown."""
    with _loading("clip", sources["clip"]):
        return clip_side(sources["clip"])


@contextmanager
def _loading(role: str, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"encoder {role} {name!r} cannot be loaded ({' '.join(str(error).split())[:300]}); set "
            f"`encoders.{role}` to a name that can be downloaded, or to a folder"
        ) from error
