"""The stages that turn one source shard into an embedded shard.

    Decode            reads, checks and filters rows; copies rows that an earlier shard has, and
                      decodes the pictures of the others
    EncodeTexts       encodes captions with T5
    EncodePictures    encodes captions and pictures with CLIP, and applies the CLIP score filter
    Write             writes the shard, then the record that says it is complete

Each stage is a pool of actors of the Ray Data job. Without GPUs, one kind of actor does all stages
in turn (``AllStages``). Shards are processed whole, as the unit of recovery, and the result depends
only on the shard and the recipe: copied and encoded rows differ at most in an encoder's last bits
(:mod:`pipelines.data.row_reuse`).
"""

from __future__ import annotations

import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from pipelines.data.row_reuse import RowCopier, ShardLost, content_hash, image_hash
from pipelines.data.rows import Reason, RejectedRow, Row, RowError
from pipelines.steps.embed_batch import BatchSize
from pipelines.steps.embed_work import Job, Work
from pipelines.store.remote import StorageError, attempt


class Stage(ABC):
    """An actor of the job. It handles one shard at a time, pickled into one cell to keep it
    whole."""

    name: ClassVar[str]
    """Name in the spec's ``embedding:`` and in the reported seconds."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error = ""
        self.failure: StorageError | None = None
        try:
            self.load()
        except ValueError as error:
            self.error = str(error)
        except OSError as error:
            self.failure = StorageError.of(error)

    def load(self) -> None:  # noqa: B027  (most stages load nothing)
        """Load what the stage needs; ValueError if that fails."""

    @abstractmethod
    def work(self, work: Work) -> None:
        """Do this stage's part for a shard."""

    def run(self, work: Work) -> None:
        """Do this stage's part and time it; pass on a shard that failed or is done."""
        work.error = work.error or self.error
        work.failure = work.failure or self.failure
        if not work.error and not work.failure and not work.done:
            start = time.monotonic()
            try:
                self.work(work)
            except OSError as error:
                work.failure = StorageError.of(error)
            work.seconds[self.name] = time.monotonic() - start

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        work: Work = pickle.loads(batch["work"][0].as_py())
        self.run(work)
        return pa.table({"work": pa.array([pickle.dumps(work, 5)], pa.large_binary())})


class Decode(Stage):
    """Turns source rows into clean captions and pictures of every size."""

    name = "decode"

    def load(self) -> None:
        from pipelines.models.encoders import encoder_sources, side_for_clip

        self.clip_side = side_for_clip(
            encoder_sources(self.job.store, self.job.encoders_folder, self.job.encoders)
        )

    def work(self, work: Work) -> None:
        work.done = self.job.is_done(work.shard)
        if work.done:
            return

        copier = RowCopier(self.job.store, self.job.reuse, work.shard.name)
        while True:
            attempt(lambda: self.read(work, copier), work.shard.url)
            try:
                self.copy(work, copier)
                break
            except ShardLost as lost:  # its rows are read again, to be encoded
                copier.exclude(lost.shard)
        work.encoded = len(work.rows)

    def read(self, work: Work, copier: RowCopier) -> None:
        """Read and filter all rows of the shard, from the start."""
        from pipelines.data.sources import read_shard

        work.rows, work.pictures, work.rejected, work.read = [], [], [], 0
        work.copied, work.dropped = [], {}
        if self.job.reuse.is_sampled:
            copier.find_all(
                content_hash(image_hash(found.image), caption)
                for found in read_shard(self.job.source, work.shard)
                if isinstance(found, Row)
                for caption in found.captions
            )
        for found in read_shard(self.job.source, work.shard):
            self.add_row(work, found, copier)

    def add_row(self, work: Work, found: Row | RejectedRow, copier: RowCopier) -> None:
        """Filter a row, and add its pairs or why it is rejected."""
        from pipelines.data.filters import apply_filters

        work.read += isinstance(found, Row) or found.reason != Reason.CAPTION_DROPPED
        if isinstance(found, RejectedRow):
            work.rejected.append(found)
            return
        try:
            for row in apply_filters(found, self.job.filters):
                if isinstance(row, RejectedRow):
                    work.rejected.append(row)
                else:
                    self.split_pairs(work, row, copier)
        except RowError as bad:
            work.rejected.append(RejectedRow(found.key, found.source, bad.reason, bad.detail))

    def split_pairs(self, work: Work, row: Row, copier: RowCopier) -> None:
        """Assign a row's image–caption pairs to those to copy and those to encode.

        Raises:
            RowError: The picture is damaged.
        """
        picture = image_hash(row.image)
        to_encode, copied, dropped = [], [], []
        for i, caption in enumerate(row.captions):
            content = content_hash(picture, caption)
            pair = {
                "at": (work.read, i),
                "key": f"{row.key}#{i}" if i else row.key,
                "source": row.source,
                "caption": caption,
                "content": content,
                "scores": dict(row.scores),
            }
            known = copier.find(content)
            if known is None:
                to_encode.append(pair)
            elif known.row is None:
                dropped.append((pair, known.score))
            else:
                copied.append({**pair, "known": known})
        if to_encode:
            work.pictures.append(self.resize(row.image))
            work.rows += [{**pair, "picture": len(work.pictures) - 1} for pair in to_encode]
        work.copied += copied
        for pair, score in dropped:
            self.job.drop(work, pair, score)

    def copy(self, work: Work, copier: RowCopier) -> None:
        """Copy the values of known pairs from earlier shards; ShardLost if one is damaged."""
        found = [pair.pop("known") for pair in work.copied]
        values = copier.rows(found, [pair["caption"] for pair in work.copied])
        for pair, known, kept in zip(work.copied, found, values, strict=True):
            pair["values"] = kept
            pair["scores"]["clip"] = known.score

    def resize(self, image: bytes) -> dict[Any, Any]:
        """Decode a picture and scale it for CLIP and for every stage that it is large enough
        for."""
        import numpy as np

        from pipelines.data.pictures import centre_square, decode, for_clip, shortest_side

        largest = max(*self.job.resolutions, self.clip_side)
        picture = decode(image, self.job.filters.max_pixels, largest)
        out: dict[Any, Any] = {"clip": np.asarray(for_clip(picture, self.clip_side))}
        for side in self.job.resolutions:
            scale = shortest_side if side in self.job.full else centre_square
            enough = min(picture.size) >= side
            out[side] = np.asarray(scale(picture, side)) if enough else None
        return out


class EncoderStage(Stage):
    """A stage that runs a network."""

    def set_up(self) -> Mapping[str, Any]:
        """Choose the device; returns where the encoders are."""
        import torch

        from pipelines.models.encoders import encoder_sources

        torch.set_num_threads(self.job.threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batches: dict[str, BatchSize] = {}
        return encoder_sources(self.job.store, self.job.encoders_folder, self.job.encoders)

    def find_token_batch(self, name: str, encoder: Any, longest: int) -> None:
        """Find how many tokens fit into a text encoder's batch."""
        from pipelines.steps import embed_batch as batch

        self.batches[name] = batch.BatchSize(self.job.batch_tokens, batch.TOKENS)
        if self.device == "cuda":
            self.batches[name].find(
                lambda n: encoder.text(batch.long_captions(n, longest), batch_tokens=n),
                batch.GPUMemory(),
                batch.FIRST_TOKENS,
                batch.MOST_TOKENS,
            )

    def encode_texts(self, name: str, encode: Any, captions: list[str]) -> Any:
        """Encode captions in batches of the size found."""
        return self.batches[name].run_with(lambda n: encode(captions, batch_tokens=n))

    def find_picture_batch(self, clip: Any, side: int) -> None:
        """Find how many pictures fit into CLIP's batch."""
        from PIL import Image

        from pipelines.steps import embed_batch as batch

        self.batches["clip_image"] = batch.BatchSize(self.job.clip_batch, batch.PICTURES)
        if self.device == "cuda":
            self.batches["clip_image"].find(
                lambda n: clip.image([Image.new("RGB", (side, side))] * n),
                batch.GPUMemory(),
                batch.FIRST_PICTURES,
                batch.MOST_PICTURES,
            )


class EncodeTexts(EncoderStage):
    """Encodes captions with T5 and with further text encoders of the spec."""

    name = "t5"

    def load(self) -> None:
        from pipelines.models.encoders import load_extra_encoders, load_t5

        paths = self.set_up()
        self.names = {"t5": str(self.job.encoders.get("t5", "made"))}
        self.names |= {name: more["model"] for name, more in paths.get("more", {}).items()}
        self.encoders: dict[str, Any] = {"t5": (load_t5(paths, self.device), "sequence")}
        self.encoders |= load_extra_encoders(paths, self.device)
        for name, (encoder, _) in self.encoders.items():
            self.find_token_batch(name, encoder, encoder.max_tokens)

    def work(self, work: Work) -> None:
        captions = [row["caption"] for row in work.rows]
        for name, (encoder, kind) in self.encoders.items():
            work.encoders[name] = {"name": self.names[name], **encoder.identity}
            if captions:
                encode = encoder.text if kind == "sequence" else encoder.pooled
                work.embeddings[name] = self.encode_texts(name, encode, captions)
                work.batches[name] = self.batches[name].size


class EncodePictures(EncoderStage):
    """Encodes captions and pictures with CLIP; drops pairs with a low CLIP score."""

    name = "clip"

    def load(self) -> None:
        from pipelines.models.encoders import load_clip, side_for_clip

        paths = self.set_up()
        self.clip = load_clip(paths, self.device)
        self.find_token_batch("clip", self.clip, self.clip.model.context_length)
        self.find_picture_batch(self.clip, side_for_clip(paths))

    def work(self, work: Work) -> None:
        import torch
        from PIL import Image

        name = str(self.job.encoders.get("clip", "made"))
        work.encoders["clip"] = {"name": name, **self.clip.identity}
        if not work.rows:
            return
        captions = [row["caption"] for row in work.rows]
        tokens, pooled = self.encode_texts("clip", self.clip.text, captions)
        views = [Image.fromarray(p.pop("clip")) for p in work.pictures]
        by_picture = self.batches["clip_image"].run_with(
            lambda n: torch.cat(
                [self.clip.image(views[at : at + n]) for at in range(0, len(views), n)]
            )
        )
        image_embeddings = by_picture[[row["picture"] for row in work.rows]]
        work.batches |= {name: batch.size for name, batch in self.batches.items()}
        work.embeddings |= {
            "clip_text": tokens,
            "clip_text_pooled": pooled,
            "clip_image": image_embeddings,
        }
        scores = (pooled * image_embeddings).sum(dim=1).tolist()
        least = self.job.filters.clip_score
        kept = []
        for i, (row, score) in enumerate(zip(work.rows, scores, strict=True)):
            row["scores"]["clip"] = score
            if unstorable := [
                name for name, of in work.embeddings.items() if not self.can_store(of[i])
            ]:
                detail = f"{', '.join(unstorable)}, for {row['caption'][:80]!r}"
                work.rejected.append(
                    RejectedRow(row["key"], row["source"], Reason.EMBEDDING_INFINITE, detail)
                )
            elif least is None or score >= least:
                kept.append(i)
            else:
                self.job.drop(work, row, score)
        work.rows = [work.rows[i] for i in kept]
        work.embeddings = {name: [of[i] for i in kept] for name, of in work.embeddings.items()}

    def can_store(self, values: Any) -> bool:
        """Whether the shard's precision can store an embedding."""
        from pipelines.store.columns import is_representable

        what = "precision" if values.ndim == 2 else "pooled"
        return is_representable(values, self.job.packing.get(what, "fp16"))


class Write(Stage):
    """Writes the shard and the files beside it, then its record."""

    name = "write"

    def work(self, work: Work) -> None:
        from pipelines.steps.embed_write import write_shard

        work.done = self.job.is_done(
            work.shard
        )  # another actor, believed dead, may have finished it
        if not work.done:
            try:
                write_shard(self.job, work)
            except ValueError as error:
                work.error = str(error)
        work.rows, work.copied, work.pictures, work.embeddings = [], [], [], {}


class AllStages(Stage):
    """Does all stages in turn, in one process."""

    name = "whole"

    def load(self) -> None:
        self.stages = [stage(self.job) for stage in STAGES]

    def work(self, work: Work) -> None:
        for stage in self.stages:
            stage.run(work)

    def run(self, work: Work) -> None:
        self.work(work)


STAGES: tuple[type[Stage], ...] = (Decode, EncodeTexts, EncodePictures, Write)
