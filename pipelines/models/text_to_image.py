"""Text-to-image inference with a trained cascade, for ``ediffi sample`` and MLflow."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning, Paint
from ediffi_core.control import (
    Control,
    Phrase,
    Switch,
    TokenSpans,
    paint_with_words,
    with_style,
)
from ediffi_core.encoders import CLIP, T5, EmbeddingKind, TextEncoder, encode_prompts
from ediffi_core.invariant import one_thread
from ediffi_core.loading import Residency
from pipelines.models.attention import WordAttention
from pipelines.models.controls import (
    check_options,
    ineffective,
    phrases_of,
    picture_controls,
    split_phrases,
    texts_of,
)
from pipelines.models.encoders import (
    check_trained_with,
    encoders_of,
    load_clip,
    load_extra_encoders,
    load_t5,
)
from pipelines.models.manifest import own_sampling, read_manifest
from pipelines.models.stages import StageLoader, configured, draw
from pipelines.models.watch import Pictures, Watch
from pipelines.spec.sampling import Sampling, SamplingWarning, warn_not_run, with_changes
from pipelines.store.artifacts import Store

TEXTS = 256
"""Encoded texts that a model remembers: pictures of one prompt come after each other, and many
callers share a negative prompt."""


@dataclass
class TextToImage:
    """A cascade with the encoders that it was trained on."""

    stages: list[CascadeStage]
    t5: T5
    clip: CLIP
    device: torch.device
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    """Stage → the ensemble's own settings."""

    more: Mapping[str, tuple[TextEncoder, EmbeddingKind]] = field(default_factory=dict)
    """Further text encoders: embedding name → encoder, and ``sequence`` or ``pooled``."""

    loader: StageLoader | None = None
    """Loads the weights for another ``ema_length``."""

    def __post_init__(self) -> None:
        @functools.lru_cache(TEXTS)
        def encoded(text: str) -> Conditioning:
            return encode_prompts(self.t5, self.clip, [text], self.more)

        self.encoded = encoded
        """Text → its conditioning, one row."""

    @staticmethod
    def load(
        manifest: str | Path, residency: Residency = "all", storage: str | None = None
    ) -> TextToImage:
        """Load an ``ensemble.json`` that a promote node wrote, onto a GPU if there is one.

        Args:
            storage: folder or URL of the store, if it has moved since.

        Raises:
            ValueError: The manifest, a checkpoint or an encoder is missing or does not fit.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        d = read_manifest(manifest, storage)
        try:
            store = Store.at(d["store"])
            loader = StageLoader(store, d["stages"], d["weights"], residency, device)
            stages = loader.load()
            sources = encoders_of(store, d)
            trained_with = d.get("trained_with") or {}
            sampling = own_sampling(d["stages"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{manifest} is not an ensemble manifest ({error!r})") from error
        t5, more = load_t5(sources), load_extra_encoders(sources)
        clip = load_clip(sources, trained_with=trained_with.get("clip", {}))
        check_trained_with(
            {"t5": t5, "clip": clip, **{n: e for n, (e, _) in more.items()}}, trained_with
        )
        return TextToImage(stages, t5, clip, device, sampling, more, loader)

    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        first: int | Sequence[int] = 0,
        sampling: Mapping[str, Any] | None = None,
        negative: str | Sequence[str] | None = None,
        image: Any = None,
        sigma: float | None = None,
        mask: Any = None,
        variation: Any = None,
        style: Sequence[Any] = (),
        style_weights: Sequence[float] | None = None,
        then: str | Sequence[str] | None = None,
        switch: float | None = None,
        switch_sigma: float | None = None,
        paint: Sequence[Sequence[Phrase]] | None = None,
        up_to: str | None = None,
        batch: int = 64,
        watch: Watch | None = None,
        attention: WordAttention | None = None,
    ) -> Pictures:
        """Generate one image per prompt; unset options are the ensemble's own.

        Args:
            seed: one seed for all, then equal prompts give different images; or one seed per
                prompt, then an image does not depend on the other prompts.
            first: number of the first image, to go on with a seed: image i of a call depends on
                (seed, first + i). With a seed per prompt, the number of every image. Or one number
                per prompt, then image i depends on its seed and ``first[i]``.
            sampling: changes of the ensemble's own settings, as for
                :func:`~pipelines.spec.sampling.with_changes`, such as ``{"sr256.steps": 20}``.
            negative: negative prompts, for all or for each prompt: guidance leads away from them.
                ``""`` has no effect.
            image: PIL image to start from or, with ``mask``, to keep a part of. Its centre square
                is used, as in training.
            sigma: noise level at which the base stage starts from ``image`` plus noise, instead of
                from pure noise. The default without ``mask`` is
                :func:`~pipelines.models.controls.default_sigma`.
            mask: PIL image of the size of ``image``: bright where to draw, dark where to keep.
            variation: PIL image to make variations of, by CLIP's embedding of it; then ``""`` is
                no prompt.
            style: PIL images whose style all images take.
            style_weights: of the ``style`` images, in equal parts by default.
            then: second prompts, for all or for each prompt: the base stage switches to them.
            switch: fraction of the base's steps after which it switches.
            switch_sigma: noise level at which it switches, instead of ``switch``.
            paint: painted phrases of each prompt; may be empty. With ``then``, a phrase is painted
                in whichever of the two prompts has it.
            up_to: name of the last stage to run; all stages by default.
            batch: images generated at once, at most.
            watch: is told of every step, and says which images are still wanted; all must fit in
                one batch.
            attention: a new one, which then tells where each image attended to which word; all
                must fit in one batch.

        Returns:
            uint8 [N, R, R, 3].

        Warns:
            SamplingWarning: A setting has no effect.

        Raises:
            ValueError: An option, a prompt or a painted phrase is invalid.
            Abandoned: The watch wants none of the images any more.
        """
        names = [stage.name for stage in self.stages]
        if up_to is not None and up_to not in names:
            raise ValueError(f"there is no stage {up_to!r}; the cascade has {', '.join(names)}")
        stages = self.stages[: names.index(up_to) + 1] if up_to else self.stages
        changed = with_changes(self.sampling, sampling) if sampling else self.sampling
        warn_not_run(sampling or {}, names, [stage.name for stage in stages])
        if self.loader:
            for stage in stages:
                self.loader.set_length(stage, changed[stage.name].ema_length)
        if sampling:
            stages = [configured(stage, changed[stage.name]) for stage in stages]
        base, count = stages[0], len(prompts)
        check_options(
            image=image,
            sigma=sigma,
            mask=mask,
            variation=variation,
            styles=len(style),
            style_weights=style_weights,
            then=then,
            switch=switch,
            switch_sigma=switch_sigma,
            sigma_min=base.sigma_min,
            sigma_max=base.sigma_max,
        )
        references = [variation] if variation is not None else style
        with one_thread():
            embedding = self.clip.image(references) if references else None

        def conditioned(texts: Sequence[str], phrases: Sequence[Sequence[Phrase]]) -> Conditioning:
            cond = self._encoded(texts, empty_is_absent=variation is not None)
            if embedding is not None:
                cond = with_style(cond, embedding, style_weights)
            return replace(cond, paint=self._painted(phrases, texts))

        phrases, second = phrases_of(paint, count), None
        negatives = texts_of("negative", negative, count)
        if then is not None:
            texts = texts_of("then", then, count)
            phrases, after = split_phrases(phrases, prompts, texts)
            second = Switch(cond=conditioned(texts, after), fraction=switch, sigma=switch_sigma)
        avoided = self._encoded(negatives, empty_is_absent=True) if any(negatives) else None
        start, keep = picture_controls(image, mask, sigma, base, self.stages[-1].resolution)
        control = Control(negative=avoided, switch=second, start=start, keep=keep)
        for message in ineffective(control, stages):
            warnings.warn(message, SamplingWarning, stacklevel=2)
        cond = conditioned(prompts, phrases).to(self.device)
        drawn = draw(
            stages,
            cond,
            seed=seed,
            first=first,
            batch=batch,
            control=control,
            watch=watch,
            attention=attention.start(prompts, self._spans(prompts)) if attention else None,
        )
        out: Pictures = drawn[stages[-1].name].numpy()
        return out

    def _encoded(self, texts: Sequence[str], *, empty_is_absent: bool) -> Conditioning:
        cond = Conditioning.cat([self.encoded(text) for text in texts])
        absent = torch.tensor([empty_is_absent and not text.strip() for text in texts])
        return cond.with_absent(absent) if absent.any() else cond

    def _painted(self, phrases: Sequence[Sequence[Phrase]], prompts: Sequence[str]) -> Paint | None:
        if not any(phrases):
            return None
        return paint_with_words(phrases, self._spans(prompts))

    def _spans(self, prompts: Sequence[str]) -> dict[str, list[TokenSpans]]:
        """Sequence → where its tokens are in each prompt."""
        tokens = {n: e for n, (e, kind) in self.more.items() if kind == "sequence"}
        encoders: dict[str, TextEncoder | CLIP] = {"t5": self.t5, "clip_text": self.clip, **tokens}
        return {name: encoder.spans(prompts) for name, encoder in encoders.items()}
