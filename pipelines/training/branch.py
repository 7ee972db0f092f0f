"""Where an expert comes from: the parent's weights, proved to be the parent's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ediffi_core.checkpoint import Card, load_denoiser, read
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

    def check(self, interval: Interval) -> None:
        """ValueError unless the parent was trained on all of the child's noise levels."""
        _, card = read(self._file("ema"))
        theirs = card.interval
        if theirs.q_lo > interval.q_lo or theirs.q_hi < interval.q_hi:
            raise ValueError(
                f"parent {card.expert} was trained on quantiles [{theirs.q_lo:g}, "
                f"{theirs.q_hi:g}), which do not hold this expert's "
                f"[{interval.q_lo:g}, {interval.q_hi:g}); branch from one that does"
            )
        self._prove("ema", card)

    def weights(self, which: Which) -> dict[str, Tensor]:
        """ValueError unless they are the very weights that the parent's manifest names."""
        weights, card = read(self._file(which))
        self._prove(which, card)
        return weights

    def _prove(self, which: Which, card: Card) -> None:
        told = self.manifest["info"][SHA[which]]
        if card.weights_sha256 != told:
            raise ValueError(
                f"{self._file(which)} holds weights {card.weights_sha256[:12]}…, the manifest of "
                f"{self.manifest['name']} names {told[:12]}…; remove that node and run it again"
            )

    def denoiser(self) -> Denoiser:
        """The parent as it is used: averaged, without gradients."""
        return load_denoiser(self._file("ema"))[0]

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
