"""U-Nets for denoising: one vocabulary of blocks, and the networks built from it."""

from ediffi_core.unet.base import PRESETS, UNet, UNetConfig

__all__ = ["PRESETS", "UNet", "UNetConfig"]
