"""Conditioning of a denoiser: embeddings of any encoders, present or absent per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ediffi_core import draws
from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.token_groups import TokenGroups, by_length


@dataclass(frozen=True, eq=False)
class Paint:
    """Where phrases should appear: paint-with-words (eDiff-I section 4.3)."""

    maps: Mapping[str, Tensor]
    """Sequence → [N, L, h, w]: for each token, the mask of its phrase times the strength w'; zero
    for tokens outside phrases."""

    weight: Literal["max", "std"] = "max"
    """Statistic of ``Q Kᵀ`` that scales the strength: its maximum as in the paper, or its
    standard deviation."""

    token_maps: dict[Any, TokenMaps] = field(default_factory=dict, init=False, repr=False)
    """Cache of the maps in the token order of each network, reused at every sampling step."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A batch of conditioning.

    An absent embedding is all zeros, and its tokens are masked out.
    """

    sequences: Mapping[str, Tensor] = field(default_factory=dict)  # name → [N, L, dim]
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # name → [N, L] bool, True = a token
    pooled: Mapping[str, Tensor] = field(default_factory=dict)  # name → [N, dim]
    low_res: Tensor | None = None  # [N, C, h, w] in [-1, 1], input of super-resolution
    paint: Paint | None = None

    def upsampled_low_res(self, like: Tensor) -> Tensor:
        """``low_res``, upsampled bilinearly to the size and dtype of ``like`` [N, C, H, W].

        Raises:
            ValueError: ``low_res`` is not set.
        """
        if self.low_res is None:
            raise ValueError("a super-resolution network needs a low-resolution image: set low_res")
        size = like.shape[2:]
        upsampled = F.interpolate(self.low_res, size=size, mode="bilinear", align_corners=False)
        return upsampled.to(like.dtype)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Conditioning:
        """Apply ``fn`` to every tensor."""

        def each(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: fn(tensor) for name, tensor in tensors.items()}

        return Conditioning(
            each(self.sequences),
            each(self.masks),
            each(self.pooled),
            low_res=None if self.low_res is None else fn(self.low_res),
            paint=self.paint and replace(self.paint, maps=each(self.paint.maps)),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Conditioning:
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def __getitem__(self, rows: slice | Tensor) -> Conditioning:
        return self.map(lambda t: t[rows])

    def __len__(self) -> int:
        """Number of rows; ValueError for an empty conditioning."""
        return len(self.any_tensor())

    @property
    def device(self) -> torch.device:
        return self.any_tensor().device

    def any_tensor(self) -> Tensor:
        """Any tensor [N, …] of the conditioning; ValueError if it is empty."""
        for tensor in (*self.pooled.values(), *self.sequences.values(), self.low_res):
            if tensor is not None:
                return tensor
        raise ValueError("an empty conditioning has no number of rows; give it an embedding")

    def non_finite_rows(self) -> list[tuple[int, str]]:
        """(row, embedding) of every row with a NaN or infinity, padding included.

        Reads a single number back from the device if all values are finite.
        """
        named = {**self.sequences, **self.pooled}
        if self.low_res is not None:
            named["low_res"] = self.low_res
        finite = {name: t.isfinite().flatten(1).all(dim=1) for name, t in named.items()}
        if not finite or bool(torch.stack(list(finite.values())).all()):
            return []
        found = [(row, name) for name, f in finite.items() for row in (~f).nonzero()[:, 0].tolist()]
        return sorted(found)

    def keep(self, kept: Mapping[str, Tensor], specs: Iterable[EmbeddingSpec]) -> Conditioning:
        """Drop embeddings per sample.

        Args:
            kept: dropout group → [N] bool, False to drop; groups not named stay.
            specs: the embeddings, which name their groups.
        """
        group = {s.name: s.group for s in specs}
        sequences, masks, pooled = dict(self.sequences), dict(self.masks), dict(self.pooled)
        for name in (*sequences, *pooled):
            keep = kept.get(group.get(name, name))
            if keep is None:
                continue
            if name in sequences:
                sequences[name] = sequences[name] * keep[:, None, None]
                masks[name] = masks[name] & keep[:, None]
            else:
                pooled[name] = pooled[name] * keep[:, None]
        return replace(self, sequences=sequences, masks=masks, pooled=pooled)

    def null(self) -> Conditioning:
        """The unconditional counterpart: all embeddings absent, no paint, ``low_res`` unchanged."""
        empty = replace(self, low_res=None, paint=None).map(torch.zeros_like)
        return replace(empty, low_res=self.low_res)

    def with_absent(self, rows: Tensor) -> Conditioning:
        """All embeddings absent in these rows, [N] bool; paint and ``low_res`` unchanged."""

        def zeroed(t: Tensor) -> Tensor:
            return t.masked_fill(rows.view(-1, *(1 for _ in t.shape[1:])), 0)

        masked = replace(self, low_res=None, paint=None).map(zeroed)
        return replace(masked, low_res=self.low_res, paint=self.paint)

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Concatenate batches; sequences and their paint are padded to the longest.

        Raises:
            ValueError: Only some batches have ``low_res``, or their paints differ in ``weight``.
        """

        def stack(of: Callable[[Conditioning], Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {k: torch.cat([of(p)[k] for p in parts]) for k in of(parts[0])}

        def padded(of: Callable[[Conditioning], Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {k: _cat_padded([of(p)[k] for p in parts]) for k in of(parts[0])}

        stacked = Conditioning(
            padded(lambda p: p.sequences), padded(lambda p: p.masks), stack(lambda p: p.pooled)
        )
        low_res = [p.low_res for p in parts if p.low_res is not None]
        if low_res:
            if len(low_res) < len(parts):
                raise ValueError("low_res is set for some rows only; set it for all or none")
            stacked = replace(stacked, low_res=torch.cat(low_res))
        weights = {p.paint.weight for p in parts if p.paint is not None}
        if not weights:
            return stacked
        if len(weights) > 1:
            raise ValueError("paint with weight max and std in one batch; choose one")
        painted = {k: v for p in parts if p.paint is not None for k, v in p.paint.maps.items()}
        maps = {
            name: _cat_padded([_maps_of(p, name, like) for p in parts])
            for name, like in painted.items()
        }
        return replace(stacked, paint=Paint(maps, weights.pop()))


def _cat_padded(parts: list[Tensor]) -> Tensor:
    """Concatenate [N_i, L_i, …] to [N, L, …], with zeros behind the shorter ones."""
    longest = max(t.shape[1] for t in parts)
    return torch.cat(
        [
            t
            if t.shape[1] == longest
            else torch.cat([t, t.new_zeros(len(t), longest - t.shape[1], *t.shape[2:])], dim=1)
            for t in parts
        ]
    )


def _maps_of(part: Conditioning, name: str, like: Tensor) -> Tensor:
    """A batch's maps of one sequence; zeros if it has none."""
    if part.paint is not None and name in part.paint.maps:
        return part.paint.maps[name]
    length = part.sequences[name].shape[1] if name in part.sequences else like.shape[1]
    return like.new_zeros(len(part), length, *like.shape[2:])


def draw_keep(
    seed: int,
    index: Tensor,
    probabilities: Mapping[str, float],
    *,
    all_p: float,
    purpose: str = "dropout",
) -> dict[str, Tensor]:
    """Embedding dropout: draws which groups each image keeps.

    Args:
        index: [N] indices of the images in the training stream.
        probabilities: group → probability of dropping it, independent of the others.
        all_p: probability of dropping all groups at once.
        purpose: name of the random stream.

    Returns:
        Group → [N] bool, True to keep.
    """
    u = draws.uniform(seed, purpose, index, len(probabilities) + 1)
    some = u[:, -1] >= all_p
    return {
        group: (u[:, i] >= probabilities[group]) & some
        for i, group in enumerate(sorted(probabilities))
    }


class Projection(nn.Module):
    """Projects embeddings to cross-attention tokens and to one global vector.

    Tokens are a learned null token, then the sequences and attended pooled vectors in the order of
    the specs. Inputs are layer-normalised and projected without a bias, so that an absent embedding
    stays zero.
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

    def forward(self, cond: Conditioning, c_noise: Tensor) -> tuple[Tokens, Tensor | None]:
        """The tokens, and the global vector [N, global_dim], None without pooled embeddings."""
        rows = len(c_noise)
        null = self.null_token.expand(rows, 1, -1)
        tokens, masks = [null], [torch.ones(rows, 1, dtype=torch.bool, device=null.device)]
        total: Tensor | None = None
        for spec in self.specs:
            x = cond.sequences[spec.name] if spec.kind == "sequence" else cond.pooled[spec.name]
            # In float32, because CLIP's pooled vectors have small entries.
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
        values = torch.cat([t.to(null.dtype) for t in tokens], 1)
        mask = torch.cat(masks, 1)
        if cond.paint is None:
            return Tokens(values, mask, groups=by_length(values, mask)), total
        return Tokens(values, mask, self.painted(cond.paint, tokens, c_noise)), total

    def painted(self, paint: Paint, tokens: list[Tensor], c_noise: Tensor) -> TokenPaint:
        """Maps of all tokens in their order; zero for the null token and pooled vectors.

        Raises:
            ValueError: The network reads none of the painted sequences, or their lengths differ
                from the conditioning's.
        """
        attended = [s for s in self.specs if s.name in self.to_token]
        read = [s.name for s in attended if s.kind == "sequence" and s.name in paint.maps]
        if not read:
            raise ValueError(
                f"{', '.join(paint.maps) or 'nothing'} is painted, but the sequences this network "
                f"reads are {', '.join(s.name for s in attended if s.kind == 'sequence')}"
            )
        like = paint.maps[read[0]].to(c_noise.device)
        maps = []
        names = ["", *(s.name for s in attended)]
        for name, t in zip(names, tokens, strict=True):
            painted = name in read
            maps.append(
                paint.maps[name].to(like.device)
                if painted
                else like.new_zeros(*t.shape[:2], *like.shape[2:])
            )
            if maps[-1].shape[:2] != t.shape[:2]:
                raise ValueError(
                    f"paint of {name} is for {list(maps[-1].shape[:2])} rows and tokens, the "
                    f"conditioning has {list(t.shape[:2])}; make both from the same prompts"
                )
        level = torch.log1p(torch.exp(4 * c_noise))  # c_noise = ln(σ)/4
        layout = tuple((name, t.shape[1]) for name, t in zip(names, tokens, strict=True))
        if layout not in paint.token_maps:
            paint.token_maps[layout] = TokenMaps(torch.cat(maps, 1))
        return TokenPaint(paint.token_maps[layout], level, paint.weight)


class TokenMaps:
    """Maps of all tokens, resized to any attention resolution and cached."""

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps  # [N, T, h, w]
        self._resized: dict[tuple[int, ...], Tensor] = {}

    def at(self, side: torch.Size) -> Tensor:
        """The paper's A times w', resized bilinearly to (H, W). → [N, 1, H W, T]"""
        key = tuple(side)
        if key not in self._resized:
            resized = nn.functional.interpolate(
                self.maps, size=key, mode="bilinear", align_corners=False, antialias=True
            )
            self._resized[key] = resized.flatten(2).transpose(1, 2)[:, None]
        return self._resized[key]


@dataclass(frozen=True, eq=False)
class TokenPaint:
    """Paint in the form that cross-attention uses."""

    maps: TokenMaps
    level: Tensor  # [N] log(1 + σ)
    weight: Literal["max", "std"]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Input of cross-attention."""

    values: Tensor  # [N, T, token_dim]
    mask: Tensor  # [N, T] bool, True where to attend
    paint: TokenPaint | None = None
    groups: TokenGroups | None = None
    """The same tokens by groups of rows, with less padding; None to attend to all rows at once."""
