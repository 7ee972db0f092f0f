"""What a denoiser is told: embeddings of any encoders, present or absent per sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ediffi_core import draws


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """One input of the conditioning. A new encoder is one more of these, nothing else."""

    name: str
    """As in the shards: ``t5``, ``clip_text``, ``clip_text_pooled``, ``clip_image``."""

    dim: int
    """Width of a vector."""

    kind: Literal["sequence", "pooled"]
    """A sequence of token vectors (attended), or one vector (added to the time embedding)."""

    source: str = ""
    """What is dropped together: CLIP's text sequence and pooled vector are one ``clip_text``."""

    attended: bool = False
    """A pooled vector that is attended as one more token as well (eDiff-I: the CLIP image)."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.kind not in ("sequence", "pooled"):
            raise ValueError(
                f"embedding {self.name!r} needs dim >= 1 and kind 'sequence' or 'pooled', "
                f"got dim={self.dim}, kind={self.kind!r}"
            )

    @property
    def group(self) -> str:
        return self.source or self.name


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A batch of embeddings. An absent embedding is all zeros, and its tokens are masked out."""

    sequences: Mapping[str, Tensor] = field(default_factory=dict)  # name → [N, L, dim]
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # name → [N, L] bool, True = a token
    pooled: Mapping[str, Tensor] = field(default_factory=dict)  # name → [N, dim]

    def map(self, fn) -> Conditioning:  # type: ignore[no-untyped-def]
        """Applies ``fn`` to every tensor."""
        return Conditioning(
            *({k: fn(v) for k, v in d.items()} for d in (self.sequences, self.masks, self.pooled))
        )

    def to(self, device: torch.device | str) -> Conditioning:
        return self.map(lambda t: t.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return self.map(lambda t: t[rows])

    def __len__(self) -> int:
        return next(len(t) for d in (self.pooled, self.sequences) for t in d.values())

    def keep(self, kept: Mapping[str, Tensor], specs: Iterable[EmbeddingSpec]) -> Conditioning:
        """Drops embeddings per sample: ``kept[group]`` is [N] bool; groups not named stay."""
        group = {s.name: s.group for s in specs}
        out = Conditioning(dict(self.sequences), dict(self.masks), dict(self.pooled))
        for name in (*self.sequences, *self.pooled):
            mask = kept.get(group.get(name, name))
            if mask is None:
                continue
            if name in self.sequences:
                out.sequences[name] = self.sequences[name] * mask[:, None, None]  # type: ignore[index]
                out.masks[name] = self.masks[name] & mask[:, None]  # type: ignore[index]
            else:
                out.pooled[name] = self.pooled[name] * mask[:, None]  # type: ignore[index]
        return out

    def null(self) -> Conditioning:
        """The unconditional twin: everything absent."""
        return self.map(torch.zeros_like)

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Stacks batches whose sequences have the same padded length."""
        first = parts[0]
        return Conditioning(
            *(
                {k: torch.cat([getattr(p, d)[k] for p in parts]) for k in getattr(first, d)}
                for d in ("sequences", "masks", "pooled")
            )
        )


def draw_keep(
    seed: int,
    index: Tensor,
    probabilities: Mapping[str, float],
    *,
    all_p: float,
    purpose: str = "dropout",
) -> dict[str, Tensor]:
    """Which groups each image keeps: independent dropout, and all at once with ``all_p``.

    Args:
        index: [N] index of the images in the training stream.
        probabilities: group → probability of dropping it (paper.md section 3: our defaults).
    """
    u = draws.uniform(seed, purpose, index, len(probabilities) + 1)
    some = u[:, -1] >= all_p
    return {
        group: (u[:, i] >= probabilities[group]) & some
        for i, group in enumerate(sorted(probabilities))
    }


class Projection(nn.Module):
    """Embeddings → (tokens to attend, their mask, one global vector).

    Tokens are ``[null, sequences in the order of the specs, attended pooled vectors]``. Inputs are
    normalised without an offset and projected without a bias, so that a zero stays a zero.
    """

    def __init__(self, specs: tuple[EmbeddingSpec, ...], token_dim: int, global_dim: int) -> None:
        super().__init__()
        self.specs = specs
        self.null_token = nn.Parameter(torch.randn(token_dim) * token_dim**-0.5)
        self.to_token = nn.ModuleDict(
            {
                s.name: nn.Linear(s.dim, token_dim, bias=False)
                for s in specs
                if s.kind == "sequence" or s.attended
            }
        )
        self.to_global = nn.ModuleDict(
            {s.name: nn.Linear(s.dim, global_dim, bias=False) for s in specs if s.kind == "pooled"}
        )

    def forward(self, cond: Conditioning, rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """→ tokens [N, T, token_dim], mask [N, T] bool, global [N, global_dim] or None."""
        null = self.null_token.expand(rows, 1, -1)
        tokens, masks = [null], [torch.ones(rows, 1, dtype=torch.bool, device=null.device)]
        total: Tensor | None = None
        for spec in self.specs:
            x = cond.sequences[spec.name] if spec.kind == "sequence" else cond.pooled[spec.name]
            # In float32: CLIP's pooled vectors are small, and half precision would round them.
            x = nn.functional.layer_norm(x.float(), (spec.dim,))
            if spec.kind == "sequence":
                tokens.append(self.to_token[spec.name](x))
                masks.append(cond.masks[spec.name])
                continue
            g = self.to_global[spec.name](x)
            total = g if total is None else total + g
            if spec.attended:
                tokens.append(self.to_token[spec.name](x)[:, None])
                masks.append((x != 0).any(dim=1, keepdim=True))
        return torch.cat([t.to(null.dtype) for t in tokens], 1), torch.cat(masks, 1), total
