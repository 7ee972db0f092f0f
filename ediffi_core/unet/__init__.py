"""U-Nets for denoising: shared blocks, and the networks built from them.

Configurations come without torch; torch is imported with :class:`UNet`, on first access.
"""

from typing import TYPE_CHECKING, Any

from ediffi_core.unet.config import (
    PAPER_EMBEDDINGS,
    PRESETS,
    SIZES,
    FieldError,
    Size,
    UNetConfig,
)

if TYPE_CHECKING:
    from ediffi_core.unet.net import UNet

__all__ = ["PAPER_EMBEDDINGS", "PRESETS", "SIZES", "FieldError", "Size", "UNet", "UNetConfig"]


def __getattr__(name: str) -> Any:
    if name != "UNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ediffi_core.unet.net import UNet

    globals()["UNet"] = UNet
    return UNet
