"""What a PNG file of ``ediffi sample`` says about itself: model, settings, prompts and seeds.

The text chunk ``ediffi`` has it as JSON, for ``ediffi sample --like``; ``Description``, which most
viewers show, has it for people. The XMP packet says, in IPTC's terms, that a model made it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from xml.sax.saxutils import quoteattr

from pydantic import Field, ValidationError, model_validator

from pipelines.models.request import Picture, Request
from pipelines.rgb import FORMATS
from pipelines.spec.base import Strict

KEY = "ediffi"
"""Keyword of the text chunk."""

LISTED = 50
"""Pictures of a sheet that its description lists, at most."""


XMP_KEY = "XML:com.adobe.xmp"
"""Keyword of the text chunk in which readers of XMP look for a packet."""

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""IPTC's vocabulary for how a picture came to be."""

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool={tool}
    Iptc4xmpExt:DigitalSourceType={source}/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def installed() -> str:
    """Version of this package; empty in a source tree that is only on the Python path."""
    try:
        return importlib.metadata.version("ediffi")
    except importlib.metadata.PackageNotFoundError:
        return ""


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Hash of an ensemble's manifest, equal in every store that has the ensemble."""
    content = {key: value for key, value in manifest.items() if key != "store"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class ModelId(Strict):
    """An ensemble, whatever it is called later."""

    name: str
    manifest: str
    """:func:`manifest_hash` of its manifest."""

    fingerprint: str | None = None
    """Of its promote node, if the store is known that has it."""

    version: int | None = None
    """Version in the model registry."""

    run: str | None = None
    """Id of the pipeline run that made it."""

    mlflow_run: str | None = None

    def __str__(self) -> str:
        version = f"version {self.version}" if self.version else ""
        more = ", ".join(filter(None, (version, (self.fingerprint or "")[:8])))
        return f"{self.name} ({more})" if more else self.name


class Sheet(Strict):
    """How several pictures are laid out in one file."""

    columns: int = Field(ge=1)
    captions: bool


class Metadata(Strict):
    """All that is needed to make a PNG file again."""

    format: Literal[1] = 1
    ediffi: str
    """Version of the package that wrote the file."""

    model: ModelId
    request: Request
    """Pictures that were drawn together."""

    shows: list[int] = Field(min_length=1)
    """Which of the request's pictures the file shows."""

    scale: int = Field(ge=1)
    """Factor by which they are enlarged."""

    sheet: Sheet | None = None
    """None for a single picture without a border."""

    @model_validator(mode="after")
    def pictures_exist(self) -> Self:
        if not all(0 <= i < len(self.request.pictures) for i in self.shows):
            raise ValueError("`shows` names pictures that are not there")
        return self

    @property
    def shown(self) -> list[Picture]:
        """The pictures that the file shows."""
        return [self.request.pictures[i] for i in self.shows]

    def describe(self) -> str:
        """Prompts, seeds, settings and model, in a few lines."""
        request, shown = self.request, self.shown
        if len(shown) == 1:
            lines = [shown[0].prompt or "(no prompt)", f"{shown[0].noise}"]
        else:
            lines = [f"{p.noise}: {p.prompt or '(no prompt)'}" for p in shown[:LISTED]]
            if len(shown) > LISTED:
                lines.append(f"and {len(shown) - LISTED} more pictures")
        lines += request.steered_by()
        for stage, sampling in request.sampling.items():
            settings = (f"{k}={json.dumps(v)}" for k, v in sampling.settings().items())
            lines.append(f"{stage}: {', '.join(settings)}".replace('"', ""))
        return "\n".join([*lines, f"model: {self.model}"])

    @property
    def tool(self) -> str:
        """The program that drew the picture, with its version."""
        return f"ediffi {self.ediffi}".strip()

    @property
    def source_type(self) -> str:
        """URI of IPTC's term for pictures of a trained model, or for an edited picture."""
        is_edited = self.request.image is not None
        term = "compositeWithTrainedAlgorithmicMedia" if is_edited else "trainedAlgorithmicMedia"
        return SOURCE_TYPES + term

    def xmp(self) -> str:
        """XMP packet with the picture's source; read-only, since a change would break the PNG."""
        return _XMP.format(tool=quoteattr(self.tool), source=quoteattr(self.source_type))

    def chunks(self) -> Any:
        """The text chunks, for Pillow's ``save(…, pnginfo=…)``."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt(XMP_KEY, self.xmp())
        info.add_itxt("Software", self.tool)
        info.add_itxt("Description", self.describe())
        info.add_itxt(KEY, json.dumps(self.model_dump(mode="json"), ensure_ascii=False))
        return info


def source_type(path: Path) -> str | None:
    """URI of IPTC's digital source type in a picture's XMP, as any program may have written it.

    Raises:
        ValueError: It is no picture.
    """
    packet = _opened(path).get("xmp") or b""
    text = packet if isinstance(packet, str) else packet.decode("utf-8", "replace")
    found = re.search(rf"""{re.escape(SOURCE_TYPES)}\w+""", text)
    return found[0] if found else None


def _opened(path: Path) -> dict[str, Any]:
    """``info`` of a PIL image; ValueError if the file is no picture."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            return {**image.info, **getattr(image, "text", {})}
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} is not a readable image ({why})") from error


def read(path: Path) -> Metadata:
    """What a PNG file says about itself.

    Raises:
        ValueError: It is no picture, or has no settings that this version can read.
    """
    text = _opened(path).get(KEY)
    if text is None:
        raise ValueError(
            f"{path} does not say how it was drawn; --like needs a PNG file that `ediffi sample` "
            "wrote and no other program has saved since"
        )
    try:
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or KEY
        raise ValueError(
            f"{path} holds settings that ediffi {installed()} cannot read (`{where}`: "
            f"{first['msg']}); use the version that drew it"
        ) from None
