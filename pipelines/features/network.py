"""Features of any network: of torchvision or timm by name, or a TorchScript program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.features.extractor import Extractor
from pipelines.features.weights import another_network, read_state_dict, weights_path
from pipelines.spec.base import did_you_mean


class NetworkFeatures(Extractor):
    """Pooled features of a torchvision or timm network, with that network's own preprocessing."""

    def __init__(
        self, name: str, model: str, weights: str, *, layer: str | None = None, device: str = "cpu"
    ) -> None:
        """
        Args:
            model: ``torchvision:NAME`` or ``timm:NAME``.
            weights: file with the network's state dict.
            layer: the module whose output is taken, averaged over positions: over height and width
                of [N, C, H, W], over tokens of [N, T, C]. By default what the classifier reads.

        Raises:
            ValueError: The library has no such network, it has no such layer, or the file is not
                of it.
        """
        super().__init__(name, device=device)
        library, _, of = model.partition(":")
        network, self.preprocess = {"torchvision": _torchvision, "timm": _timm}[library](name, of)
        try:
            network.load_state_dict(read_state_dict(name, weights))
        except RuntimeError as error:
            raise another_network(name, weights, error) from error
        self.network = network.eval().requires_grad_(False).to(device)
        self._seen: list[Tensor] = []
        layers = dict(network.named_modules())
        if layer is not None and layer not in layers:
            some = ", ".join(n for n, _ in network.named_children())
            raise ValueError(
                f"`evaluate.features.{name}.layer`: {model} has no layer {layer!r}; its parts are "
                f"{some}"
            )
        self.pre_logits = layer is None and library == "timm"
        if layer is not None:
            layers[layer].register_forward_hook(lambda _m, _i, out: self._seen.append(out))
        elif not self.pre_logits:
            classifier = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
            classifier.register_forward_pre_hook(lambda _m, given: self._seen.append(given[0]))

    def _batch(self, pictures: Tensor) -> Tensor:
        images = [self.preprocess(Image.fromarray(p)) for p in pictures.numpy()]
        batch = torch.stack(images).to(self.device)
        if self.pre_logits:
            network: Any = self.network
            found = network.forward_head(network.forward_features(batch), pre_logits=True)
        else:
            self._seen.clear()
            self.network(batch)
            found = self._seen[-1]
        return _pooled(self.name, found)


class TorchScriptFeatures(Extractor):
    """What a TorchScript program returns for pictures in [0, 1], or normalised as it was trained.

    The program gets float32 [N, 3, size, size].
    """

    def __init__(
        self,
        name: str,
        weights: str,
        *,
        size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: file that ``torch.jit.save`` wrote.
            size: side that pictures are resized to, bicubic and antialiased; None to leave them.
            mean, std: of each channel, subtracted and divided by.

        Raises:
            ValueError: The file is no TorchScript program.
        """
        super().__init__(name, device=device)
        file = weights_path(name, weights)
        try:
            program = torch.jit.load(str(file), map_location=device)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"`evaluate.features.{name}.weights`: {weights} is no TorchScript program "
                f"({' '.join(str(error).split())[:200]}); write one with torch.jit.save, or name "
                "`model: torchvision:NAME` or `timm:NAME`"
            ) from error
        self.network, self.size = program.eval(), size
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(mean or [0.0] * 3, device=device).view(shape)
        self.std = torch.tensor(std or [1.0] * 3, device=device).view(shape)

    def _batch(self, pictures: Tensor) -> Tensor:
        from torchvision.transforms.v2.functional import InterpolationMode, resize

        x = pictures.permute(0, 3, 1, 2).to(self.device)
        if self.size:
            side = [self.size, self.size]
            x = resize(x, side, interpolation=InterpolationMode.BICUBIC, antialias=True)
        try:
            found = self.network((x.float() / 255 - self.mean) / self.std)
        except RuntimeError as error:
            raise ValueError(
                f"`evaluate.features.{self.name}`: the program cannot read pictures "
                f"{[*x.shape]} ({str(error).strip().splitlines()[-1][:200]}); set `size:` to the "
                "side that it was trained on"
            ) from error
        return _pooled(self.name, found)


def _pooled(name: str, found: Any) -> Tensor:
    """Features [N, D] of a layer's output: averaged over positions."""
    if isinstance(found, Tensor) and found.ndim == 2:
        return found
    if isinstance(found, Tensor) and found.ndim == 3:
        return found.mean(dim=1)
    if isinstance(found, Tensor) and found.ndim == 4:
        return found.mean(dim=(2, 3))
    shape = [*found.shape] if isinstance(found, Tensor) else type(found).__name__
    raise ValueError(
        f"`evaluate.features.{name}`: its output is {shape}, not one vector per picture, per token "
        "or per pixel; name another `layer:`"
    )


Preprocess = Callable[[Image.Image], Tensor]


def _torchvision(name: str, model: str) -> tuple[nn.Module, Preprocess]:
    """A network without weights, and the preprocessing of its published weights."""
    from torchvision import models

    if model not in models.list_models():
        raise _unknown(name, "torchvision", model, models.list_models())
    # Networks that normalise their input (googlenet, inception_v3) do so only with weights.
    own = {"transform_input": True} if model in ("googlenet", "inception_v3") else {}
    network = models.get_model(model, weights=None, **own)
    default: Any = models.get_model_weights(model)
    return network, default.DEFAULT.transforms()


def _timm(name: str, model: str) -> tuple[nn.Module, Preprocess]:
    """A network without weights, and the preprocessing of its published weights."""
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    if not timm.is_model(model):
        raise _unknown(name, "timm", model, timm.list_models())
    network = timm.create_model(model, pretrained=False)
    how: dict[str, Any] = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return network, create_transform(**how, is_training=False)


def _unknown(name: str, library: str, model: str, known: Sequence[str]) -> ValueError:
    return ValueError(
        f"`evaluate.features.{name}.model`: {library} has no network {model!r}"
        + did_you_mean(model, known)
    )
