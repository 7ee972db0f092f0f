"""Networks whose rows do not depend on their batch, to the bit.

Libraries choose an algorithm by the shape of a whole batch, so a picture's last bits depend on its
company. :class:`RowInvariant` replaces the operations for which that was found; the others were
compared too and need nothing. A row then has the same bits alone and in any batch, at any place in
it, beside prompts of any length, and with any number of threads.

Compared on CPUs with AVX-512 and oneDNN, for the networks of the demo and of the tests. On a GPU
the same replacements apply, but the comparison was never made there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ediffi_core.conditioning import Conditioning
from ediffi_core.token_groups import LANES
from ediffi_core.unet.blocks import up_conv


class RowInvariant(TorchFunctionMode):
    """Computes the rows of a batch independently of each other, in this thread.

    A 1×1 convolution and a layer on vectors become a product of matrices for each row. Any other
    convolution of a single row is one of two equal rows: oneDNN computes one row otherwise than
    several. An upsampling convolution, which it splits by threads, is not fused. SiLU is made of
    functions without a rounding of their own at the ends of rows and of threads' shares. Attention
    moves masked tokens to the end, so that sums over tokens do not depend on where they were.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread of the CPU: products of texts' odd lengths depend on how threads
    share them. For encoders, which take little of a drawing's time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def padded(cond: Conditioning) -> Conditioning:
    """The conditioning with absent tokens at the ends, up to a multiple of `LANES`."""

    def longer(t: Tensor) -> Tensor:
        more = -t.shape[1] % LANES
        return torch.cat([t, t.new_zeros(len(t), more, *t.shape[2:])], dim=1) if more else t

    return replace(
        cond,
        sequences={name: longer(t) for name, t in cond.sequences.items()},
        masks={name: longer(t) for name, t in cond.masks.items()},
        paint=cond.paint
        and replace(cond.paint, maps={name: longer(t) for name, t in cond.paint.maps.items()}),
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.ndim != 2:
        return F.linear(x, weight, bias)
    out = torch.bmm(x[:, None], weight.t().expand(len(x), -1, -1))[:, 0]
    return out if bias is None else out + bias


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    is_pointwise = weight.shape[2:] == (1, 1) and stride in (1, (1, 1)) and groups == 1
    if is_pointwise and padding in (0, (0, 0)):
        out = torch.bmm(weight.flatten(1).expand(len(x), -1, -1), x.flatten(2))
        out = out.unflatten(2, x.shape[2:])
        return out if bias is None else out + bias[:, None, None]
    if len(x) > 1:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return F.conv2d(torch.cat([x, x]), weight, bias, stride, padding, dilation, groups)[:1]


def _up_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def _silu(x: Tensor, inplace: bool = False) -> Tensor:
    """In operations that round the same in and behind the last whole vector of a thread's share."""
    wide = x.float()
    return (wide / wide.neg().exp_().add_(1)).to(x.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    if attn_mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    is_bool = attn_mask.dtype == torch.bool
    seen = (attn_mask if is_bool else attn_mask > -torch.inf).any(dim=1).any(dim=1)  # [N, T]
    # On CPUs only if a token to attend to is behind a masked one; GPUs are not asked: that waits.
    if seen.device.type != "cpu" or bool((seen[:, 1:] & ~seen[:, :-1]).any()):
        order = seen.int().argsort(dim=1, descending=True, stable=True)
        at = order[:, None, :, None]
        k, v = (t.gather(2, at.expand(-1, t.shape[1], -1, t.shape[3])) for t in (k, v))
        attn_mask = attn_mask.gather(3, order[:, None, None].expand(*attn_mask.shape[:3], -1))
    more = -k.shape[2] % LANES
    if more:
        k, v = F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more))
        attn_mask = F.pad(attn_mask, (0, more), value=False if is_bool else -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)


REPLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.silu: _silu,
    up_conv: _up_conv,
    F.scaled_dot_product_attention: _attention,
}
