"""Where an expert comes from: the parent's weights, proved to be the parent's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ediffi_core.checkpoint import Card, filled, read
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from pipelines.store.artifacts import Store

Which = Literal["ema", "raw"]
SHA = {"ema": "weights_sha256", "raw": "raw_sha256"}


@dataclass(frozen=True)
class Parent:
    """The expert that this one was branched from."""

    store: Store
    folder: str
    manifest: Mapping[str, Any]

    interval: Interval
    """Of the child."""

    def weights(self, which: Which) -> dict[str, Tensor]:
        return self._read(which)[0]

    def denoiser(self) -> Denoiser:
        """The parent as it is used: averaged, without gradients."""
        return filled(*self._read("ema"))

    def _read(self, which: Which) -> tuple[dict[str, Tensor], Card]:
        """ValueError unless it was trained on all of the child's noise levels, and these are the
        very weights that its manifest names."""
        weights, card = read(self._file(which))
        theirs, mine = card.interval, self.interval
        if not theirs.holds(mine):
            raise ValueError(
                f"parent {card.expert} was trained on quantiles [{theirs.q_lo:g}, "
                f"{theirs.q_hi:g}), which do not hold this expert's "
                f"[{mine.q_lo:g}, {mine.q_hi:g}); branch from one that does"
            )
        told = self.manifest["info"][SHA[which]]
        if card.weights_sha256 != told:
            raise ValueError(
                f"{self._file(which)} holds weights {card.weights_sha256[:12]}…, the manifest of "
                f"{self.manifest['name']} names {told[:12]}…; remove that node and run it again"
            )
        return weights, card

    def _file(self, which: Which) -> str:
        return str(self.store.local(f"{self.folder}/{which}.safetensors"))

    @property
    def state(self) -> str:
        """The folder of all that the parent's training ended with."""
        return f"{self.folder}/state"

    def origin(self, start: str) -> dict[str, Any]:
        """What the child's card says of it."""
        which: Which = "raw" if start == "raw" else "ema"
        return {
            "name": self.manifest["name"],
            "fingerprint": self.manifest["fingerprint"],
            "weights": "state" if start == "continue" else which,
            "sha256": self.manifest["info"][SHA[which]],
        }
