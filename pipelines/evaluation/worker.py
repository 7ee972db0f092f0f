"""Compute the chunks of an evaluation: draw, score, write the part, drop the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ediffi_core.cascade import CascadeStage
from ediffi_core.conditioning import Conditioning
from ediffi_core.ensemble import Ensemble
from ediffi_core.precond import Denoiser
from ediffi_core.unet import UNet
from pipelines.evaluation import losses
from pipelines.evaluation.job import Chunk, Embedded, Job, Source, text_only
from pipelines.evaluation.parts import (
    DRAWN,
    ENLARGED,
    NETWORKS,
    REAL,
    SHOWN,
    SHUFFLED,
    UNTRAINED,
    key,
    write,
)
from pipelines.evaluation.scoring import Scorer
from pipelines.metrics import Pictures
from pipelines.models.stages import draw, load_stages
from pipelines.spec.evaluation import UNTRAINED_CAPTIONS
from pipelines.training.validation import validation_batch


class Worker:
    """Computes chunks of a job, one at a time; the models are loaded once."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.source: Source
        self.stages: list[CascadeStage]
        self.scorer: Scorer

    def open(self) -> None:
        """Load the models, the metrics and the data; ValueError if something is missing."""
        job = self.job
        torch.set_num_threads(job.threads)
        self.source = job.source()
        self.stages = load_stages(job.store, job.stages, job.weights, device=job.device)
        self.scorer = Scorer(job.scoring, job.store, job.device)
        if self.scorer.extractors:
            known = {one.name: one.sha256 for one in self.scorer.extractors}
            job.store.write_json(f"{job.parts_folder}/{NETWORKS}", known)

    def compute(self, chunk: Chunk) -> None:
        """Compute a chunk and write its part; ValueError if it does not fit into a GPU's memory."""
        try:
            self._compute(chunk)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"a batch of {self.job.batch:,} does not fit into the GPU's memory; lower "
                "`evaluate.batch` (--batch of `ediffi evaluate`), or set `sampling.tile`"
            ) from error

    def _compute(self, chunk: Chunk) -> None:
        if chunk.kind == "losses":
            self._losses(chunk).write(self.job.store, self.job.parts_folder, chunk.file)
            return
        found: dict[str, list[Tensor]] = {}
        for start in range(chunk.start, chunk.stop, self.job.batch):
            rows = range(start, min(start + self.job.batch, chunk.stop))
            for name, tensor in self._batch(rows).items():
                found.setdefault(name, []).append(tensor)
        write(self.job, chunk, {name: torch.cat(tensors) for name, tensors in found.items()})

    def _batch(self, rows: range) -> dict[str, Tensor]:
        """What is kept of a batch of pictures: scores, features, and the first few pictures."""
        job, found = self.job, dict[str, Tensor]()
        captions = self.source.captions(rows)
        cond, real = self.source.read(rows)
        if real is not None:
            found |= self._looked_at(REAL, real, captions, scored=job.controls)
        if not self.stages:
            return found
        cond = cond.to(job.device)
        drawn = draw(self.stages, cond, seed=job.seed, first=rows.start, batch=job.batch)
        pictures = drawn[self.stages[-1].name].numpy()
        found |= self._looked_at(DRAWN, pictures, captions)
        if rows.start < job.shown:
            shown = torch.from_numpy(pictures[: job.shown - rows.start])
            found[key(DRAWN, SHOWN, "pictures")] = shown
        if job.controls:
            found |= self._controls(rows, cond, pictures, captions)
            if len(self.stages) > 1:
                below = drawn[self.stages[-2].name].numpy()
                plain = enlarged(below, self.stages[-1].resolution)
                found |= self._looked_at(ENLARGED, plain, captions)
        return found

    def _looked_at(
        self, of: str, pictures: Pictures, captions: list[str], *, scored: bool = True
    ) -> dict[str, Tensor]:
        """Scores and features of pictures.

        Args:
            of: what the pictures are, such as :data:`~pipelines.evaluation.parts.DRAWN`.
            scored: whether to compute the metrics' scores; the CLIP score always is.
        """
        features = self.scorer.main_features(pictures)
        scores = self.scorer.text_alignment(features, captions)
        if scored:
            scores |= self.scorer.caption_scores(pictures, captions)
        # Real pictures' features are computed once, by a job that draws nothing.
        if of == DRAWN or not self.stages:
            features |= self.scorer.named_features(pictures)
        return _keyed(of, scores=scores, features=features)

    def _controls(
        self, rows: range, cond: Conditioning, pictures: Pictures, captions: list[str]
    ) -> dict[str, Tensor]:
        """Scores with the next picture's captions, and those of an untrained network."""
        if not self.scorer.metrics:
            return {}
        after = self.source.captions([rows.stop % self.job.count])
        shuffled = self.scorer.caption_scores(pictures, captions[1:] + after)
        found = _keyed(SHUFFLED, scores=shuffled)
        few = min(UNTRAINED_CAPTIONS - rows.start, len(rows))
        if few > 0:
            stages = [*self.stages[:-1], untrained(self.stages[-1])]
            noise = draw(
                stages,
                cond[slice(0, few)],
                seed=self.job.seed,
                first=rows.start,
                batch=self.job.batch,
            )
            scores = self.scorer.caption_scores(noise[stages[-1].name].numpy(), captions[:few])
            found |= _keyed(UNTRAINED, scores=scores)
        return found

    def _losses(self, chunk: Chunk) -> losses.Losses:
        """Denoising losses, conditioned on text only, like a user's prompt.

        With the picture's own CLIP embedding, an expert that ignores the text would hardly be
        noticed.
        """
        how = self.job.losses
        assert how is not None and isinstance(self.source, Embedded)
        reader = self.source.reader

        def batches(index: Tensor) -> tuple[Tensor, Conditioning]:
            x, cond = validation_batch(reader, index, how)
            return x.to(self.job.device), text_only(cond).to(self.job.device)

        return losses.measure(
            cast(Ensemble, self.stages[-1].denoiser),
            batches,
            how,
            pictures=len(reader),
            batch=self.job.batch,
            part=slice(chunk.start, chunk.stop),
        )


def _keyed(of: str, **groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the keys of a part."""
    return {
        key(of, what, name): tensor
        for what, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def untrained(stage: CascadeStage) -> CascadeStage:
    """The same stage with an untrained network, as a baseline for the measures."""
    trained = cast(Ensemble, stage.denoiser).experts[0].denoiser
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = Denoiser.of(cast(UNet, trained.net).config, trained.sigma_data)
    fresh = fresh.eval().requires_grad_(False).to(next(trained.parameters()).device)
    return replace(stage, denoiser=fresh)


def enlarged(pictures: Pictures, side: int) -> Pictures:
    """Pictures of the previous stage, resized: the baseline for super-resolution."""
    method = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), method)) for p in pictures])
