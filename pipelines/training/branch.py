"""Branching: loads the parent's weights and verifies that they are the parent's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ediffi_core.checkpoint import Card, build_denoiser, read
from ediffi_core.noise import Interval
from ediffi_core.precond import Denoiser
from pipelines.store.artifacts import Store

WeightKind = Literal["ema", "raw"]
SHA256_KEY = {"ema": "weights_sha256", "raw": "raw_sha256"}


@dataclass(frozen=True)
class Parent:
    """The finished expert that a child starts from."""

    store: Store
    folder: str
    manifest: Mapping[str, Any]

    interval: Interval
    """The child's interval."""

    def weights(self, which: WeightKind) -> dict[str, Tensor]:
        """The parent's EMA or raw weights by name.

        Raises:
            ValueError: The parent's interval does not contain the child's, or the weights differ
                from those that the parent's manifest names.
        """
        return self.read(which)[0]

    def denoiser(self) -> Denoiser:
        """The parent with its EMA weights, without gradients."""
        return build_denoiser(*self.read("ema"))

    def read(self, which: WeightKind) -> tuple[dict[str, Tensor], Card]:
        """Read a weights file and its card.

        Raises:
            ValueError: The parent's interval does not contain the child's, or the weights differ
                from those that the parent's manifest names.
        """
        weights, card = read(self._file(which))
        theirs, mine = card.interval, self.interval
        if not theirs.holds(mine):
            raise ValueError(
                f"parent {card.expert} was trained on quantiles [{theirs.q_lo:g}, "
                f"{theirs.q_hi:g}), which do not hold this expert's "
                f"[{mine.q_lo:g}, {mine.q_hi:g}); branch from one that does"
            )
        expected = self.manifest["info"][SHA256_KEY[which]]
        if card.weights_sha256 != expected:
            raise ValueError(
                f"{self._file(which)} holds weights {card.weights_sha256[:12]}…, the manifest of "
                f"{self.manifest['name']} names {expected[:12]}…; remove that node and run it again"
            )
        return weights, card

    def _file(self, which: WeightKind) -> str:
        return str(self.store.local(f"{self.folder}/{which}.safetensors"))

    @property
    def state(self) -> str:
        """Folder of the parent's final training state."""
        return f"{self.folder}/state"

    def origin(self, start: str) -> dict[str, Any]:
        """The ``parent`` entry of the child's card."""
        which: WeightKind = "raw" if start == "raw" else "ema"
        return {
            "name": self.manifest["name"],
            "fingerprint": self.manifest["fingerprint"],
            "weights": "state" if start == "continue" else which,
            "sha256": self.manifest["info"][SHA256_KEY[which]],
        }
