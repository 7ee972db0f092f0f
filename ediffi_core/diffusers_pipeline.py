"""The cascade as a pipeline of the library diffusers, for folders that ``ediffi export`` wrote.

This module alone needs diffusers; nothing else in ediffi_core imports it. Importing it is what
lets diffusers load an exported folder without running code from that folder::

    from ediffi_core.diffusers_pipeline import EdiffiPipeline

    pipe = EdiffiPipeline.from_pretrained("FOLDER").to("cuda")
    pipe("a frog", guidance_scale=3.0, seed=7).images[0].save("frog.png")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from torch import Tensor, nn

from ediffi_core.cascade import CascadeStage, sample
from ediffi_core.conditioning import Conditioning
from ediffi_core.control import Control
from ediffi_core.encoders import CLIP, T5, EmbeddingKind, TextEncoder, encode_prompts
from ediffi_core.loading import Residency, cast_parameters
from ediffi_core.pretrained import cascade_folder, load_cascade, precision_of, read_config
from ediffi_core.stage_settings import with_settings

OUTPUT_TYPES = ("pil", "np", "pt")


class _Component(ModelMixin):
    """A part of the pipeline that loads itself from its subfolder."""

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:
        """Not supported: an exported model is saved by copying its folder.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{type(self).__name__} is not saved by diffusers; copy the exported folder instead of "
            f"writing {save_directory}, or run `ediffi export` again"
        )


def _refuse_loader_options(given: Mapping[str, Any]) -> None:
    for name in ("device_map", "quantization_config"):
        if given.get(name) is not None:
            raise ValueError(f"an ediffi pipeline takes no {name}; use .to(device), or a residency")


class EdiffiCascade(_Component):
    """All stages: their ensembles of expert denoisers, and how to sample them."""

    def __init__(self, stages: Sequence[CascadeStage], settings: Mapping[str, Any]) -> None:
        """
        Args:
            stages: from the lowest resolution up.
            settings: stage → its sampling settings.
        """
        super().__init__()
        self.stages = list(stages)
        self.settings = {name: dict(values) for name, values in settings.items()}
        denoisers = [s.denoiser for s in stages]
        self.ensembles = nn.ModuleList([d for d in denoisers if isinstance(d, nn.Module)])

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        residency: Residency | None = None,
        torch_dtype: torch.dtype | None = None,
        **loader: Any,
    ) -> EdiffiCascade:
        """Load the subfolder ``cascade`` of an exported model; see :func:`load_cascade`.

        Args:
            residency: where the experts' weights are; by default as chosen at the export.
            torch_dtype: type of the weights in memory; float32 by default.
            loader: options that diffusers passes to all components; most do not apply here.
        """
        _refuse_loader_options(loader)
        dtype = torch_dtype or torch.float32
        stages = load_cascade(folder, residency=residency, dtype=dtype)
        config = read_config(cascade_folder(folder))
        return cls(stages, {s["name"]: s["sampling"] for s in config["stages"]})

    def to(self, *args: Any, **kwargs: Any) -> EdiffiCascade:
        """As of any module; a type is that of the parameters, in which the networks compute."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None:
            precision_of(dtype)
            cast_parameters(self, dtype)
        return super().to(device) if device is not None else self

    def configured(self, changes: Mapping[str, Any] | None = None) -> list[CascadeStage]:
        """The stages with changed sampling settings.

        Args:
            changes: dotted name of a setting → value, such as ``{"guidance.scale": 2,
                "sr256.steps": 20}``. Without the name of a stage, the first one is meant.

        Raises:
            ValueError: A setting is unknown or invalid.
        """
        settings = with_changes(self.settings, changes or {})
        dtype = next(self.parameters()).dtype
        if dtype != torch.float32:
            settings = {
                name: {**values, "precision": precision_of(dtype)}
                for name, values in settings.items()
            }
        return [with_settings(stage, settings[stage.name]) for stage in self.stages]

    def forward(
        self,
        stages: Sequence[CascadeStage],
        cond: Conditioning,
        *,
        seed: int | Sequence[int],
        negative: Conditioning | None = None,
        on_step: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> Tensor:
        """Sample some stages of :meth:`configured`. → images [N, 3, R, R] in [-1, 1]

        Args:
            on_step: called after each step with the name of the stage and the solver's state.
        """

        def callback(stage: str) -> Callable[[dict[str, Any]], None]:
            return lambda state: on_step(stage, state) if on_step else None

        control = Control(negative=negative)
        drawn = dict(sample(stages, cond, seed=seed, control=control, callback=callback))
        return drawn[stages[-1].name]


def with_changes(
    settings: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Sampling settings by stage, with some changed by their dotted names."""
    found = {name: dict(values) for name, values in settings.items()}
    base = next(iter(found))
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        stage, path = (first, rest) if dot and first in found else (base, key)
        name, _, inner = path.partition(".")
        if name == "guidance" and not inner and not isinstance(value, Mapping):
            inner = "scale"
        if inner:
            before = found[stage].get(name) or {}
            before = before if isinstance(before, Mapping) else {"scale": before}
            value = {**before, inner: value}
        found[stage][name] = value
    return found


class EdiffiEncoders(_Component):
    """The frozen encoders of prompts. They keep the type of the embeddings in training."""

    def __init__(
        self, t5: T5, clip: CLIP, more: Mapping[str, tuple[TextEncoder, EmbeddingKind]]
    ) -> None:
        super().__init__()
        self.t5, self.clip, self.more = t5, clip, dict(more)
        self.models = nn.ModuleList([e.model for e in self._all().values()])

    def _all(self) -> dict[str, T5 | CLIP | TextEncoder]:
        return {"t5": self.t5, "clip": self.clip, **{n: e for n, (e, _) in self.more.items()}}

    @classmethod
    def from_pretrained(cls, folder: Path | str, **loader: Any) -> EdiffiEncoders:
        """Load the subfolder ``encoders`` of an exported model.

        Args:
            loader: options that diffusers passes to all components; most do not apply here.

        Raises:
            ValueError: An encoder is missing, or is not the one of the training.
        """
        _refuse_loader_options(loader)
        root = Path(folder)
        config = read_config(root)

        def place(source: Mapping[str, Any]) -> str:
            return str(root / source["folder"]) if "folder" in source else str(source["name"])

        t5, clip = config["t5"], config["clip"]
        try:
            found = cls(
                T5(place(t5), dtype=getattr(torch, t5["dtype"])),
                CLIP(place(clip), pretrained=clip["pretrained"], follow_tag=clip["follow_tag"]),
                {
                    name: (TextEncoder(place(source)), source["kind"])
                    for name, source in config["more"].items()
                },
            )
        except OSError as error:
            raise ValueError(f"{root} lacks an encoder ({' '.join(str(error).split())})") from error
        for name, encoder in found._all().items():
            trained = config["trained_with"].get(name, {}).get("how", encoder.recipe)
            if trained != encoder.recipe:
                raise ValueError(
                    f"encoder {name} differs from the one that the model was trained with "
                    f"({encoder.recipe}; not {trained}); export the model again"
                )
        return found

    def to(self, *args: Any, **kwargs: Any) -> EdiffiEncoders:
        """Moves to a device; the type stays."""
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return super().to(device) if device is not None else self

    def forward(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts; ValueError for values that are not finite."""
        for encoder in self._all().values():
            encoder.device = str(next(encoder.model.parameters()).device)
        return encode_prompts(self.t5, self.clip, prompts, self.more)


class EdiffiPipeline(DiffusionPipeline):
    """Text to image with a cascade of ensembles of expert denoisers (eDiff-I, arXiv:2211.01324)."""

    def __init__(self, cascade: EdiffiCascade, encoders: EdiffiEncoders) -> None:
        super().__init__()
        self.register_modules(cascade=cascade, encoders=encoders)

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        sampling: Mapping[str, Any] | None = None,
        stage: str | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None,
    ) -> Any:
        """Draw pictures for prompts; what is not given is the model's own.

        Args:
            prompt: one text or several.
            negative_prompt: what guidance leads away from: one text for all prompts, or one each.
                An empty text is none.
            num_inference_steps: steps of the first stage.
            guidance_scale: as everywhere in diffusers, and so eDiff-I's w plus 1: 1 is no guidance.
                It applies to the first stage.
            num_images_per_prompt: pictures of each prompt; those of a prompt follow each other.
            generator: draws the seeds: one for all pictures, or one for each.
            seed: in place of a generator. One seed draws what ``ediffi sample --seed`` draws:
                picture i depends on (seed, i). With a seed each, a picture depends on its own.
            sampling: further settings by dotted name, such as ``{"threshold": "dynamic",
                "sr256.steps": 20}``; see the model card.
            stage: name of the last stage to run; all by default.
            output_type: ``pil``; ``np``, float32 [N, R, R, 3] in [0, 1]; or ``pt``, a tensor
                [N, 3, R, R] in [0, 1].
            return_dict: False for a tuple.
            callback_on_step_end: called as ``f(pipeline, step, sigma, tensors)`` after each step,
                with the step's number within its stage and its noise level. ``tensors`` has
                ``latents`` (the noisy picture), ``denoised`` and ``stage``. It may return
                ``{"latents": …}`` to go on from.

        Returns:
            An ``ImagePipelineOutput`` with ``images``, or a tuple of them.

        Raises:
            ValueError: An argument is invalid.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("there is no prompt; give one text or several")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r} is none of {', '.join(OUTPUT_TYPES)}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; write 1 or more")
        changes = dict(sampling or {})
        if num_inference_steps is not None:
            changes["steps"] = num_inference_steps
        if guidance_scale is not None:
            if guidance_scale < 1:
                raise ValueError(f"guidance_scale is {guidance_scale}; write 1 (none) or more")
            changes["guidance.scale"] = guidance_scale - 1
        stages = self._up_to(stage, self.cascade.configured(changes))
        negatives = self._negatives(negative_prompt, len(prompts))
        if any(negatives) and not any(s.is_guided() for s in stages):
            warnings.warn(
                "negative_prompt has no effect without guidance; set guidance_scale above 1",
                stacklevel=2,
            )

        copies = torch.arange(len(prompts)).repeat_interleave(num_images_per_prompt)
        seeds = self._seeds(seed, generator, len(copies))
        device = self._execution_device
        cond = self.encoders(prompts)[copies].to(device)
        negative = self._negative(negatives)[copies].to(device) if any(negatives) else None
        with self.progress_bar(total=sum(s.steps for s in stages)) as bar:

            def on_step(name: str, state: dict[str, Any]) -> None:
                bar.update()
                if callback_on_step_end is None:
                    return
                x = state["x"]
                tensors = {"latents": x, "denoised": state["denoised"], "stage": name}
                changed = callback_on_step_end(self, state["step"], state["sigma"], tensors) or {}
                if (new := changed.get("latents", x)) is not x:
                    x.copy_(new)

            x = self.cascade(stages, cond, seed=seeds, negative=negative, on_step=on_step)
        images = _as_output(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _up_to(self, stage: str | None, stages: list[CascadeStage]) -> list[CascadeStage]:
        names = [s.name for s in stages]
        if stage is None:
            return stages
        if stage not in names:
            raise ValueError(f"there is no stage {stage!r}; the cascade has {', '.join(names)}")
        return stages[: names.index(stage) + 1]

    def _negatives(self, given: str | Sequence[str] | None, prompts: int) -> list[str]:
        one = given or ""
        texts = [one] * prompts if isinstance(one, str) else list(one)
        if len(texts) != prompts:
            raise ValueError(
                f"{len(texts)} negative prompts for {prompts} prompts; give one, or one each"
            )
        return texts

    def _negative(self, texts: list[str]) -> Conditioning:
        """Conditioning of negative prompts; an empty one is no prompt."""
        cond: Conditioning = self.encoders(texts)
        return cond.with_absent(torch.tensor([not text for text in texts]))

    def _seeds(
        self,
        seed: int | Sequence[int] | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        pictures: int,
    ) -> int | list[int]:
        if seed is not None and generator is not None:
            raise ValueError("give either a seed or a generator")
        if isinstance(seed, int):
            return seed
        if seed is not None:
            return list(seed)
        if generator is None or isinstance(generator, torch.Generator):
            return _draw_seed(generator)
        if len(generator) != pictures:
            raise ValueError(
                f"{len(generator)} generators for {pictures} pictures; give one, or one each"
            )
        return [_draw_seed(g) for g in generator]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**62, (1,), generator=generator, device=device))


def _as_output(x: Tensor, output_type: str) -> Any:
    """Images [N, 3, R, R] in [-1, 1] as what was asked for."""
    if output_type == "pt":
        return (x + 1) / 2
    if output_type == "np":
        return ((x + 1) / 2).permute(0, 2, 3, 1).cpu().float().numpy()
    from PIL import Image

    pixels = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]
