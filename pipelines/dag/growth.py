"""Adaptive trees: the gains of finished experts decide which side of the tree is split next.

A tree is a function of its settings and of the metrics of its finished experts. There is no other
state, so a run that is killed and restarted grows the same tree. As in eDiff-I, only the
highest-noise and the lowest-noise chains grow; the complement, which covers the interval between
them, is trained last.
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
    """What a finished expert gained over its parent, and what was decided for its side."""

    expert: str
    images: int
    """Images the expert was trained on."""

    share: float
    """Share of the weighting that the expert's interval covers, 0 to 1."""

    parent_loss: float
    """The parent's validation loss on the expert's interval."""

    gain: float
    """The parent's loss minus the expert's, on the expert's interval."""

    low: float
    """Lower bound of the gain's 95 % confidence interval."""

    high: float
    """Upper bound of the gain's 95 % confidence interval."""

    adopted: bool
    """Whether the expert takes its slot in the ensemble: ``low`` is above 0."""

    rate: float
    """Gain × share per million images: how sides are ranked."""

    weighting: str
    """What the share is a share of: ``p(σ)`` or ``the sampler's steps``."""

    then: str
    """What follows for this side, in words."""

    @property
    def gained(self) -> str:
        """The gain with its interval and share, in words."""
        return (
            f"gained {self.gain:+.4f} [{self.low:+.4f}, {self.high:+.4f}] "
            f"on {self.share:.1%} of {self.weighting}"
        )

    def row(self) -> dict[str, Any]:
        """The decision as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree as far as it has grown."""

    experts: tuple[str, ...]
    """All experts below the root, in the order in which they were added."""

    ensemble: tuple[str, ...] = ()
    """Its slots, from high noise to low; empty while the tree still grows."""

    decisions: tuple[Decision, ...] = ()
    spent: int = 0
    """Images of all ``experts``, trained or still to be trained."""

    end: str = ""
    """Why it stopped growing; empty while it still grows."""

    @property
    def is_grown(self) -> bool:
        """Whether the tree has stopped growing."""
        return bool(self.ensemble)


WEIGHTINGS = {"noise": "p(σ)", "sampler": "the sampler's steps"}


def grow(
    settings: Adaptive,
    metrics: Mapping[str, Mapping[str, float]],
    noise: NoiseDistribution,
    warp: tree.Warp = tree.EQUAL_SHARES,
) -> Tree:
    """Grow a tree as far as the metrics of its finished experts allow.

    Args:
        settings: the stage's ``adaptive:``.
        metrics: finished expert → its ``val_loss_parent``, ``val_gain``, ``val_gain_low`` and
            ``val_gain_high``.
        noise: the stage's p(σ), which places the intervals on the sampler's σ grid.
        warp: where the tree cuts p(σ).

    Returns:
        The tree. Its last experts have no metrics yet if it still grows: train them and call again.
    """
    return _Grower(settings, metrics, noise, warp).tree()


def outer_child(name: str, side: Side) -> str:
    """The expert on the outer half of an expert's interval: its highest or its lowest noise."""
    level, index = tree.level_and_index(name)
    return f"E{level + 1}_{2 * index + (side == 'high')}"


@dataclass
class _Grower:
    settings: Adaptive
    metrics: Mapping[str, Mapping[str, float]]
    noise: NoiseDistribution
    warp: tree.Warp
    experts: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    tips: dict[Side, str] = field(default_factory=dict)
    """The last adopted expert of each side; the first-level expert if none is adopted."""

    rates: dict[Side, float] = field(default_factory=dict)
    """Rate of the last expert, for the sides that may be split further."""

    def tree(self) -> Tree:
        self.experts = [outer_child(tree.ROOT, side) for side in SIDES]
        if not all(name in self.metrics for name in self.experts):
            return self._so_far()
        for side, name in zip(SIDES, self.experts, strict=True):
            self.tips[side] = name
            self._assess(side, name)
        while best := self._best_side():
            name = outer_child(self.tips[best], best)
            self.decisions[-1] = self._and_then(f"{name} next")
            self.experts.append(name)
            if name not in self.metrics:
                return self._so_far()
            self._assess(best, name)
        end = self._reason_to_stop()
        self.decisions[-1] = self._and_then(end)
        ensemble = [self.tips["high"], self.tips["low"]]
        if self._needs_complement():
            self.experts.append(tree.COMPLEMENT)
            ensemble.insert(1, tree.COMPLEMENT)
        return replace(self._so_far(), ensemble=tuple(ensemble), end=end)

    def _so_far(self) -> Tree:
        return Tree(
            experts=tuple(self.experts),
            decisions=tuple(self.decisions),
            spent=len(self.experts) * self.settings.images,
        )

    def _and_then(self, then: str) -> Decision:
        last = self.decisions[-1]
        return replace(last, then=f"{last.then}; {then}")

    def _assess(self, side: Side, name: str) -> None:
        m, share = self.metrics[name], self._share(name)
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
                then="may be split further" if enough else "this side stops",
            )
        )

    def _share(self, name: str) -> float:
        """Share of p(σ) or of the sampler's steps that an expert's interval covers."""
        piece = tree.interval(name, self.warp)
        if self.settings.weighting == "noise":
            return piece.q_hi - piece.q_lo
        low, high = (SamplerDensity().quantile_at(sigma) for sigma in piece.bounds(self.noise))
        return high - low

    def _best_side(self) -> Side | None:
        """The affordable side with the highest rate; None to stop."""
        able = [s for s in SIDES if s in self.rates and self._affords(s)]
        return max(able, key=lambda side: self.rates[side], default=None)

    def _affords(self, side: Side) -> bool:
        """Whether depth and budget allow one more expert on this side, and the complement."""
        images = (len(self.experts) + 2) * self.settings.images
        return self._level(side) < self.settings.depth and images <= self.settings.budget

    def _reason_to_stop(self) -> str:
        if not self.rates:
            return "no side gained enough"
        if all(self._level(side) >= self.settings.depth for side in self.rates):
            return f"the depth of {self.settings.depth} is reached"
        return f"the budget of {self.settings.budget:,} images is spent"

    def _level(self, side: Side) -> int:
        return tree.level_and_index(self.tips[side])[0]

    def _needs_complement(self) -> bool:
        """Whether the two sides leave an interval between them."""
        return any(self._level(side) > 1 for side in SIDES)
