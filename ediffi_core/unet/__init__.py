"""U-Nets for denoising: shared blocks, and the networks built from them."""

from ediffi_core.unet.config import (
    PAPER_EMBEDDINGS,
    PRESETS,
    SIZES,
    FieldError,
    Size,
    UNetConfig,
)
from ediffi_core.unet.net import UNet

__all__ = ["PAPER_EMBEDDINGS", "PRESETS", "SIZES", "FieldError", "Size", "UNet", "UNetConfig"]
