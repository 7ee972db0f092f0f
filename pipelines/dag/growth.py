"""Trees that grow while they are trained: what was gained decides which side is split next.

A tree is a function of its settings and of the metrics of the experts that are done: no other state
is kept, so a killed run grows the same tree. Only the chains of highest and of lowest noise grow,
as in eDiff-I; the complement is trained last, on what they leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ediffi_core import tree
from ediffi_core.noise import NoiseDistribution, SamplerDensity
from pipelines.spec.adaptive import Adaptive

Side = Literal["high", "low"]
SIDES: tuple[Side, Side] = ("high", "low")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a finished child had to say of its side."""

    expert: str
    images: int
    share: float
    """That the child works on, by the weighting."""

    parent_loss: float
    gain: float
    low: float
    high: float
    adopted: bool
    rate: float
    """Loss taken off the whole, by the weighting, by a million images."""

    weighting: str
    """That the share is of: ``p(σ)`` or ``the sampler's steps``."""

    then: str

    @property
    def gained(self) -> str:
        return (
            f"gained {self.gain:+.4f} [{self.low:+.4f}, {self.high:+.4f}] "
            f"on {self.share:.1%} of {self.weighting}"
        )

    def row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree as far as it is known."""

    experts: tuple[str, ...]
    """Below the root, in the order in which they were decided on."""

    ensemble: tuple[str, ...] = ()
    """Empty until it is known."""

    decisions: tuple[Decision, ...] = ()
    spent: int = 0
    end: str = ""
    """Why it grows no further."""

    @property
    def is_grown(self) -> bool:
        return bool(self.ensemble)


WEIGHTINGS = {"noise": "p(σ)", "sampler": "the sampler's steps"}


def grow(
    settings: Adaptive,
    found: Mapping[str, Mapping[str, float]],
    noise: NoiseDistribution,
) -> Tree:
    """The tree that these metrics make.

    Args:
        found: expert → ``val_loss_parent``, ``val_gain``, ``val_gain_low`` and ``val_gain_high`` of
            those that are done.
        noise: of the stage; where its intervals lie on the sampler's grid.
    """
    growing = _Growing(settings, found, noise)
    return growing.tree()


def child(name: str, side: Side) -> str:
    """The half of an expert's interval at its outer end."""
    level, index = tree.level_and_index(name)
    return f"E{level + 1}_{2 * index + (side == 'high')}"


@dataclass
class _Growing:
    settings: Adaptive
    found: Mapping[str, Mapping[str, float]]
    noise: NoiseDistribution
    experts: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    tips: dict[Side, str] = field(default_factory=dict)
    """The last expert of each side that may work; of the first level in any case."""

    rates: dict[Side, float] = field(default_factory=dict)
    """Of the sides that may be split further."""

    def tree(self) -> Tree:
        self.experts = [child(tree.ROOT, side) for side in SIDES]
        if not all(name in self.found for name in self.experts):
            return self._known()
        for side, name in zip(SIDES, self.experts, strict=True):
            self.tips[side] = name
            self._judge(side, name)
        while best := self._best():
            name = child(self.tips[best], best)
            self.decisions[-1] = self._followed_by(f"{name} next")
            self.experts.append(name)
            if name not in self.found:
                return self._known()
            self._judge(best, name)
        end = self._why_not_on()
        self.decisions[-1] = self._followed_by(end)
        ensemble = [self.tips["high"], self.tips["low"]]
        if self._leaves_a_gap():
            self.experts.append(tree.COMPLEMENT)
            ensemble.insert(1, tree.COMPLEMENT)
        return replace(self._known(), ensemble=tuple(ensemble), end=end)

    def _known(self) -> Tree:
        return Tree(
            experts=tuple(self.experts),
            decisions=tuple(self.decisions),
            spent=len(self.experts) * self.settings.images,
        )

    def _followed_by(self, then: str) -> Decision:
        last = self.decisions[-1]
        return replace(last, then=f"{last.then}; {then}")

    def _judge(self, side: Side, name: str) -> None:
        m, share = self.found[name], self._share(name)
        enough = m["val_gain_low"] > self.settings.min_gain * m["val_loss_parent"]
        rate = m["val_gain"] * share / self.settings.images * 1e6
        if m["val_gain_low"] > 0:
            self.tips[side] = name
        self.rates.pop(side, None)
        if enough:
            self.rates[side] = rate
        self.decisions.append(
            Decision(
                expert=name,
                images=self.settings.images,
                share=share,
                parent_loss=m["val_loss_parent"],
                gain=m["val_gain"],
                low=m["val_gain_low"],
                high=m["val_gain_high"],
                adopted=m["val_gain_low"] > 0,
                rate=rate,
                weighting=WEIGHTINGS[self.settings.weighting],
                then="may go on" if enough else "this side ends",
            )
        )

    def _share(self, name: str) -> float:
        """Of p(σ) or of the sampler's steps, that an expert works on."""
        piece = tree.interval(name)
        if self.settings.weighting == "noise":
            return piece.q_hi - piece.q_lo
        low, high = (SamplerDensity().quantile_at(sigma) for sigma in piece.bounds(self.noise))
        return high - low

    def _best(self) -> Side | None:
        """The side that gained the most by an image, of those that can be paid for."""
        able = [s for s in SIDES if s in self.rates and self._affords(s)]
        return max(able, key=lambda side: self.rates[side], default=None)

    def _affords(self, side: Side) -> bool:
        """One more, and the complement of what is then left."""
        images = (len(self.experts) + 2) * self.settings.images
        return self._level(side) < self.settings.depth and images <= self.settings.budget

    def _why_not_on(self) -> str:
        if not self.rates:
            return "no side gained enough"
        if all(self._level(side) >= self.settings.depth for side in self.rates):
            return f"the depth of {self.settings.depth} is reached"
        return f"the budget of {self.settings.budget:,} images is spent"

    def _level(self, side: Side) -> int:
        return tree.level_and_index(self.tips[side])[0]

    def _leaves_a_gap(self) -> bool:
        return any(self._level(side) > 1 for side in SIDES)
