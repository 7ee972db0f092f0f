"""A training step of ours against diffusers' and imagen-pytorch's networks of the same size.

Runs where the peers are installed: ``make bench`` puts them into ``build/peers``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from harness import in_turn, report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from ediffi_core.conditioning import Conditioning, EmbeddingSpec
from ediffi_core.unet import UNet, UNetConfig

BATCH, SIDE, TOKENS, DIM, ROUNDS, THREADS = 8, 32, 64, 256, 15, 2


def ours() -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    specs = (EmbeddingSpec(name="t5", dim=DIM, kind="sequence"),)
    net = UNet(
        UNetConfig(
            resolution=SIDE,
            channels=48,
            channel_mult=(1, 2, 4),
            blocks=1,
            self_attention=(16, 8),
            cross_attention=(16, 8),
            head_channels=16,
            token_dim=256,
            embeddings=specs,
        )
    )
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    return net, lambda x, t, text: net(x, t, Conditioning({"t5": text}, {"t5": mask}))


def diffusers() -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(48, 96, 176),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=DIM,
        attention_head_dim=16,
        norm_num_groups=16,
    )
    return net, lambda x, t, text: net(x, t, text).sample


def imagen() -> tuple[nn.Module, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    import transformers

    # Importing it asks the network for T5's configuration; it is not used here.
    transformers.T5Config.from_pretrained = classmethod(lambda cls, *a, **k: cls(d_model=DIM))
    from imagen_pytorch import Unet

    net = Unet(
        dim=60,
        dim_mults=(1, 2, 3),
        num_resnet_blocks=1,
        layer_attns=(False, True, True),
        layer_cross_attns=(False, True, True),
        text_embed_dim=DIM,
        max_text_len=TOKENS,
        cond_dim=128,
        attn_heads=4,
        attn_dim_head=32,
    )
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    return net, lambda x, t, text: net(x, t, text_embeds=text, text_mask=mask)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    x, t = torch.randn(BATCH, 3, SIDE, SIDE), torch.rand(BATCH)
    text, target = torch.randn(BATCH, TOKENS, DIM), torch.randn(BATCH, 3, SIDE, SIDE)
    steps, sizes = {}, {}
    for name, make in {"ours": ours, "diffusers": diffusers, "imagen": imagen}.items():
        torch.manual_seed(0)
        net, forward = make()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
        with FlopCounterMode(display=False) as counter:
            forward(x, t, text)
        sizes[name] = (
            sum(p.numel() for p in net.parameters()) / 1e6,
            counter.get_total_flops() / BATCH / 1e9,
        )

        def step(forward=forward, optimizer=optimizer) -> None:  # type: ignore[no-untyped-def]
            loss = (forward(x, t, text) - target).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        steps[name] = step
    for name, size in sizes.items():
        for mine, theirs in zip(sizes["ours"], size, strict=True):
            if abs(theirs / mine - 1) > 0.05:
                raise SystemExit(f"{name} is no fair peer: {size} against {sizes['ours']}")
    seconds = in_turn(ROUNDS, **steps)
    rows = [
        f"| {name} | {sizes[name][0]:.2f} M | {sizes[name][1]:.2f} | {BATCH / s:.1f} | "
        f"{s / seconds['ours']:.2f}× |"
        for name, s in seconds.items()
    ]
    report(
        "Training step against peers",
        [
            f"{SIDE}×{SIDE}, batch {BATCH}, {TOKENS} text tokens, fp32, {THREADS} threads; "
            f"forward, backward and fused AdamW; median of {ROUNDS} rounds in turn.",
            "",
            "| network | parameters | GFLOPs a picture, forward | images/s | time against ours |",
            "|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
