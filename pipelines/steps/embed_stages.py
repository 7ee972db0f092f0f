"""What is done to one source shard on its way to becoming an embedded one, stage by stage.

    Decode      reads, checks and filters its rows; every picture is decoded once
    Texts       T5 of the captions
    Pictures    CLIP of captions and pictures, and the filter that needs it
    Write       the shard, and behind it the row that says it is done

Each is a pool of actors of the Ray Data job; or one actor does them all in turn (``Whole``), where
no GPU makes them differ in what they need. A shard travels whole: it is the unit of recovery, and
what comes out depends on nothing but the shard and the recipe.
"""

from __future__ import annotations

import pickle
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from pipelines.data.pool import is_whole, shard_path
from pipelines.data.rows import Bad, BadRow, Reason, Row
from pipelines.data.settings import Filters, Source
from pipelines.data.shard import SourceShard
from pipelines.remote import attempt
from pipelines.steps.embed_batch import Batch, Given
from pipelines.store.artifacts import Store, sha256

FILTERED = (
    Reason.IMAGE_SMALL,
    Reason.CAPTION_LENGTH,
    Reason.SCORE_MISSING,
    Reason.SCORE_BOUNDS,
    Reason.CLIP_SCORE,
)
"""Sound rows that are not wanted: counted. All other reasons are faults: listed one by one."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all shards of an embedding job have in common; travels to every actor."""

    store: Store
    pool: str
    """The folder in the store that versions of this recipe share."""

    source: Source
    resolutions: tuple[int, ...]
    full: tuple[int, ...]
    packing: dict[str, Any]
    encoders_folder: str | None
    encoders: Mapping[str, Any]
    threads: int
    batch_tokens: Given
    clip_batch: Given

    @cached_property
    def filters(self) -> Filters:
        """A picture is never enlarged: it must do for the smallest stage at least."""
        given = self.source.filters
        return given.model_copy(update={"min_side": given.min_side or min(self.resolutions)})

    def path(self, shard: SourceShard, ending: str) -> str:
        return shard_path(self.pool, shard.name, shard.identity, ending)

    def is_done(self, shard: SourceShard) -> bool:
        """Whether it is in the pool, whole: Ray repeats what died before it could say so."""
        facts = self.store.read_json(self.path(shard, "json"))
        return facts is not None and is_whole(facts, self.store.size)


@dataclass
class Work:
    """A shard between two stages."""

    shard: SourceShard
    rows: list[dict[str, Any]] = field(default_factory=list)
    """For each ``key``, ``source``, ``caption``, ``picture`` (a number) and ``scores``."""

    pictures: list[dict[Any, Any]] = field(default_factory=list)
    """For each ``clip`` and every resolution a uint8 array; None where it is too small."""

    embeddings: dict[str, Any] = field(default_factory=dict)
    encoders: dict[str, dict[str, str]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)
    """Encoder, or ``clip_image`` → tokens or pictures it worked on together."""

    seconds: dict[str, float] = field(default_factory=dict)
    read: int = 0
    done: bool = False
    error: str = ""
    """A user's mistake, in words: raised in the driver, as Ray Data would print it as its own."""


class Stage(ABC):
    """An actor of the job: one shard at a time, pickled into one cell so that it stays whole."""

    name: ClassVar[str]
    """As in the spec's ``embedding:``, and in the seconds that are reported."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error = ""
        try:
            self.load()
        except ValueError as error:
            self.error = str(error)

    def load(self) -> None:  # noqa: B027  (most stages need nothing)
        """Brings what the stage needs; ValueError if that is not to be had."""

    @abstractmethod
    def work(self, work: Work) -> None:
        """Adds this stage's part."""

    def timed(self, work: Work) -> None:
        work.error = work.error or self.error
        if not work.error and not work.done:
            start = time.monotonic()
            self.work(work)
            work.seconds[self.name] = time.monotonic() - start

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        work: Work = pickle.loads(batch["work"][0].as_py())
        self.timed(work)
        return pa.table({"work": pa.array([pickle.dumps(work, 5)], pa.large_binary())})


class Decode(Stage):
    """Source rows → checked captions, and pictures of every size that is asked for."""

    name = "decode"

    def load(self) -> None:
        from pipelines.model import encoder_places, side_for_clip

        self.clip_side = side_for_clip(
            encoder_places(self.job.store, self.job.encoders_folder, self.job.encoders)
        )

    def work(self, work: Work) -> None:
        from pipelines.data.sources import read_shard

        work.done = self.job.is_done(work.shard)
        if work.done:
            return

        def read() -> None:
            work.rows, work.pictures, work.bad, work.read = [], [], [], 0
            for found in read_shard(self.job.source, work.shard):
                self.take(work, found)

        attempt(read, work.shard.url)

    def take(self, work: Work, found: Row | Bad) -> None:
        from pipelines.data.filters import sift

        work.read += isinstance(found, Row) or found.reason != Reason.CAPTION_DROPPED
        if isinstance(found, Bad):
            work.bad.append(found)
            return
        try:
            for row in sift(found, self.job.filters):
                if isinstance(row, Bad):
                    work.bad.append(row)
                    continue
                work.pictures.append(self.sizes(row.image))
                for i, caption in enumerate(row.captions):
                    work.rows.append(
                        {
                            "key": f"{row.key}#{i}" if i else row.key,
                            "source": row.source,
                            "caption": caption,
                            "picture": len(work.pictures) - 1,
                            "scores": dict(row.scores),
                        }
                    )
        except BadRow as bad:
            work.bad.append(Bad(found.key, found.source, bad.reason, bad.detail))

    def sizes(self, image: bytes) -> dict[Any, Any]:
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


class Encoding(Stage):
    """A stage that runs a network."""

    def places(self) -> Mapping[str, Any]:
        import torch

        from pipelines.model import encoder_places

        torch.set_num_threads(self.job.threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batches: dict[str, Batch] = {}
        return encoder_places(self.job.store, self.job.encoders_folder, self.job.encoders)

    def find_tokens(self, name: str, encoder: Any, longest: int) -> None:
        """How many tokens a text encoder works on together."""
        from pipelines.steps import embed_batch as batch

        self.batches[name] = batch.Batch(self.job.batch_tokens, batch.TOKENS)
        if self.device == "cuda":
            self.batches[name].find(
                lambda n: encoder.text(batch.long_captions(n, longest), batch_tokens=n),
                batch.GPUMemory(),
                batch.FIRST_TOKENS,
                batch.MOST_TOKENS,
            )

    def encoded(self, name: str, encode: Any, captions: list[str]) -> Any:
        return self.batches[name].used(lambda n: encode(captions, batch_tokens=n))

    def find_pictures(self, clip: Any, side: int) -> None:
        """How many pictures CLIP works on together."""
        from PIL import Image

        from pipelines.steps import embed_batch as batch

        self.batches["clip_image"] = batch.Batch(self.job.clip_batch, batch.PICTURES)
        if self.device == "cuda":
            self.batches["clip_image"].find(
                lambda n: clip.image([Image.new("RGB", (side, side))] * n),
                batch.GPUMemory(),
                batch.FIRST_PICTURES,
                batch.MOST_PICTURES,
            )


class Texts(Encoding):
    """T5 of every caption, and what the spec names besides."""

    name = "t5"

    def load(self) -> None:
        from pipelines.model import load_more, load_t5

        places = self.places()
        self.names = {"t5": str(self.job.encoders.get("t5", "made"))}
        self.names |= {name: more["model"] for name, more in places.get("more", {}).items()}
        self.encoders: dict[str, Any] = {"t5": (load_t5(places, self.device), "sequence")}
        self.encoders |= load_more(places, self.device)
        for name, (encoder, _) in self.encoders.items():
            self.find_tokens(name, encoder, encoder.longest)

    def work(self, work: Work) -> None:
        captions = [row["caption"] for row in work.rows]
        for name, (encoder, kind) in self.encoders.items():
            work.encoders[name] = {"name": self.names[name], **encoder.identity}
            if captions:
                encode = encoder.text if kind == "sequence" else encoder.pooled
                work.embeddings[name] = self.encoded(name, encode, captions)
                work.batches[name] = self.batches[name].size


class Pictures(Encoding):
    """CLIP of every caption and picture; drops pairs that do not belong together."""

    name = "clip"

    def load(self) -> None:
        from pipelines.model import load_clip, side_for_clip

        places = self.places()
        self.clip = load_clip(places, self.device)
        self.find_tokens("clip", self.clip, self.clip.model.context_length)
        self.find_pictures(self.clip, side_for_clip(places))

    def work(self, work: Work) -> None:
        import torch
        from PIL import Image

        name = str(self.job.encoders.get("clip", "made"))
        work.encoders["clip"] = {"name": name, **self.clip.identity}
        if not work.rows:
            return
        captions = [row["caption"] for row in work.rows]
        tokens, pooled = self.encoded("clip", self.clip.text, captions)
        views = [Image.fromarray(p.pop("clip")) for p in work.pictures]
        every = self.batches["clip_image"].used(
            lambda n: torch.cat(
                [self.clip.image(views[at : at + n]) for at in range(0, len(views), n)]
            )
        )
        seen = every[[row["picture"] for row in work.rows]]
        work.batches |= {name: batch.size for name, batch in self.batches.items()}
        work.embeddings |= {"clip_text": tokens, "clip_text_pooled": pooled, "clip_image": seen}
        scores = (pooled * seen).sum(dim=1).tolist()
        least = self.job.filters.clip_score
        kept = []
        for i, (row, score) in enumerate(zip(work.rows, scores, strict=True)):
            row["scores"]["clip"] = score
            if unkept := [name for name, of in work.embeddings.items() if not self.keeps(of[i])]:
                detail = f"{', '.join(unkept)}, for {row['caption'][:80]!r}"
                work.bad.append(Bad(row["key"], row["source"], Reason.EMBEDDING_INFINITE, detail))
            elif least is None or score >= least:
                kept.append(i)
            else:
                detail = f"{score:.3f}, the least is {least}"
                work.bad.append(Bad(row["key"], row["source"], Reason.CLIP_SCORE, detail))
        work.rows = [work.rows[i] for i in kept]
        work.embeddings = {name: [of[i] for i in kept] for name, of in work.embeddings.items()}

    def keeps(self, values: Any) -> bool:
        """Whether an embedding's values can be kept in the shard's precision."""
        from pipelines.store.columns import holds

        what = "precision" if values.ndim == 2 else "pooled"
        return holds(values, self.job.packing.get(what, "fp16"))


class Write(Stage):
    """The shard, and its keys' hashes; then its row in the pool, which says that it is done."""

    name = "write"

    def work(self, work: Work) -> None:
        work.done = self.job.is_done(work.shard)  # meanwhile, by an actor that was thought dead
        if not work.done:
            self.keep(work)
        work.rows, work.pictures, work.embeddings = [], [], {}

    def keep(self, work: Work) -> None:
        from pipelines.data.repeated import hashed, keys_path
        from pipelines.store.shards import pixels_at, write

        columns: dict[str, list[Any]] = {
            name: [row[name] for row in work.rows] for name in ("key", "source", "caption")
        }
        for score in sorted({s for row in work.rows for s in row["scores"]}):
            columns[f"score_{score}"] = [row["scores"].get(score) for row in work.rows]
        for side in self.job.resolutions:
            columns[pixels_at(side)] = [work.pictures[row["picture"]][side] for row in work.rows]
        facts: dict[str, Any] = {"rows": 0, "usable": dict.fromkeys(self.job.resolutions, 0)}
        if work.rows:
            header = header_of(self.job, work)
            data, facts = write({**columns, **work.embeddings}, header)
            path = self.job.path(work.shard, "parquet")
            self.job.store.write(path, data)
            self.job.store.write(keys_path(path), hashed(columns["key"]))
            captions = {row["caption"]: None for row in work.rows}
            facts |= {
                "path": path,
                "bytes": len(data),
                "sha256": sha256(data),
                "metadata": {k.decode(): v.decode() for k, v in header.to_metadata().items()},
                "captions": len(captions),
                "tokens": {
                    name: dict(sorted(Counter(map(len, values)).items()))
                    for name, values in work.embeddings.items()
                    if values[0].ndim == 2
                },
            }
        reasons = Counter(str(b.reason) for b in work.bad)
        facts |= {
            "name": work.shard.name,
            "source": work.shard.url,
            "source_identity": work.shard.identity,
            "read": work.read,
            "filtered": {r: n for r, n in sorted(reasons.items()) if r in FILTERED},
            "quarantined": {r: n for r, n in sorted(reasons.items()) if r not in FILTERED},
            "faults": [asdict(b) for b in work.bad if b.reason not in FILTERED],
            "batches": dict(sorted(work.batches.items())),
            "seconds": {stage: round(s, 3) for stage, s in work.seconds.items()},
        }
        self.job.store.write_json(self.job.path(work.shard, "json"), facts)


class Whole(Stage):
    """All stages in turn, in one process."""

    name = "whole"

    def load(self) -> None:
        self.stages = [stage(self.job) for stage in STAGES]

    def work(self, work: Work) -> None:
        for stage in self.stages:
            stage.timed(work)

    def timed(self, work: Work) -> None:
        self.work(work)


STAGES: tuple[type[Stage], ...] = (Decode, Texts, Pictures, Write)


def header_of(job: Job, work: Work) -> Any:
    """What is the same for all shards of the job: found from the first row's embeddings."""
    from ediffi_core.conditioning import EmbeddingSpec
    from ediffi_core.encoders import embedding_specs
    from pipelines.store.shards import Header, Packing

    found = work.embeddings
    paper = embedding_specs(
        found["t5"][0].shape[1], found["clip_text"][0].shape[1], len(found["clip_image"][0])
    )
    more = job.encoders.get("more", {})
    return Header(
        resolutions=job.resolutions,
        embeddings=(
            *paper,
            *(EmbeddingSpec(name=n, dim=m["dim"], kind=m["kind"]) for n, m in more.items()),
        ),
        encoders=work.encoders,
        packing=Packing(**job.packing, full=job.full),
    )
