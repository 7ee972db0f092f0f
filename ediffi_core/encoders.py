"""Frozen encoders: T5 or another text encoder, and CLIP for text and images.

Encoders are loaded by published name, from a local folder or from an installed package. Only this
module imports transformers and open_clip, and only when an encoder is loaded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ediffi_core.checkpoint import weights_sha256
from ediffi_core.conditioning import Conditioning
from ediffi_core.control import TokenSpans
from ediffi_core.embeddings import EmbeddingSpec
from ediffi_core.invariant import one_thread
from ediffi_core.published import resolve_source, split_revision

EmbeddingKind = Literal["sequence", "pooled"]
"""One vector per token, or one vector per text."""

MAX_TOKENS = 256
"""Longest caption in tokens, as in Imagen; encoders with fewer positions read less."""

BATCH_TOKENS = 8192
"""Tokens per batch, including padding; bounds an encoder's memory."""

ALONE = 1
"""As ``batch_tokens``: every text is a batch of its own."""

_LOADING = threading.Lock()
"""One model is loaded at a time.

While transformers loads a model it replaces methods of its base class for the whole process. If
two threads load at once, one of them can restore the other's replacement, and from then on tied
weights are left without values.
"""


class FrozenEncoder:
    """Base of encoders whose weights are used as published."""

    model: Any
    device: str

    def freeze(self, model: Any, device: str) -> None:
        """Keep a model in eval mode without gradients on a device."""
        self.model, self.device = model.eval().requires_grad_(False).to(device), device

    @cached_property
    def sha256(self) -> str:
        """sha256 of the loaded weights."""
        return weights_sha256(self.model.state_dict())

    @property
    def recipe(self) -> str:
        """A description of everything besides weights and dtype that embeddings depend on."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, str]:
        """Identity stored in shards; embeddings of encoders with equal identities may be mixed."""
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return {"sha256": self.sha256, "dtype": dtype, "how": self.recipe}


class TextEncoder(FrozenEncoder):
    """A text encoder in the Hugging Face format, such as T5, mT5, ByT5 or BERT."""

    def __init__(self, source: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32):
        """
        Args:
            source: published name, with ``@REVISION`` or without, folder or package; see
                :mod:`ediffi_core.published`.
        """
        from transformers import AutoModelForTextEncoding, AutoTokenizer

        source, revision = split_revision(resolve_source(source))
        which = {"revision": revision or "main"}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source, **which)
        with _LOADING:
            model = AutoModelForTextEncoding.from_pretrained(source, dtype=dtype, **which)
        self.freeze(model, device)
        self.dim: int = self.model.config.hidden_size
        self.max_tokens = max_text_tokens(self.tokenizer, self.model)
        """Longest caption in tokens; longer ones are truncated."""

    @property
    def recipe(self) -> str:
        return f"up to {self.max_tokens} tokens"

    @torch.inference_mode()
    def text(self, captions: Sequence[str], *, batch_tokens: int = BATCH_TOKENS) -> list[Tensor]:
        """Encode captions.

        Captions of similar length share a batch, and duplicates are encoded once.

        Returns:
            For each caption [tokens, dim] float32 on the CPU, without padding.
        """
        unique = list(dict.fromkeys(captions))
        ids = self.tokenizer(unique, truncation=True, max_length=self.max_tokens).input_ids
        found: dict[str, Tensor] = {}
        for rows in batches_by_length([len(i) for i in ids], batch_tokens):
            batch = self.tokenizer.pad({"input_ids": [ids[r] for r in rows]}, return_tensors="pt")
            batch = batch.to(self.device)
            out = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            hidden = out.last_hidden_state.float().cpu()
            for row, states in zip(rows, hidden, strict=True):
                found[unique[row]] = states[: len(ids[row])].clone()
        return [found[caption] for caption in captions]

    def pooled(self, captions: Sequence[str], *, batch_tokens: int = BATCH_TOKENS) -> list[Tensor]:
        """For each caption the mean of its tokens, [dim] float32 on the CPU."""
        return [tokens.mean(dim=0) for tokens in self.text(captions, batch_tokens=batch_tokens)]

    def spans(self, prompts: Sequence[str]) -> list[TokenSpans]:
        """Character spans of the tokens of :meth:`text`; (0, 0) for the end token."""
        batch = self.tokenizer(
            list(prompts), truncation=True, max_length=self.max_tokens, return_offsets_mapping=True
        )
        return [
            TokenSpans(prompt, [_without_space(prompt, *span) for span in spans])
            for prompt, spans in zip(prompts, batch.offset_mapping, strict=True)
        ]


class T5(TextEncoder):
    """eDiff-I's text encoder: ``google/t5-v1_1-xxl``."""


def max_text_tokens(tokenizer: Any, model: Any) -> int:
    """Tokens that a text encoder can read, at most :data:`MAX_TOKENS`.

    The tokenizer and the model's configuration set the limit. Position tables that start after the
    padding index (RoBERTa's) have that many positions less.
    """
    limits = [MAX_TOKENS, tokenizer.model_max_length]
    if positions := getattr(model.config, "max_position_embeddings", None):
        tables = (m for name, m in model.named_modules() if "position_embedding" in name)
        padding = (getattr(m, "padding_idx", None) for m in tables)
        limits.append(positions - max((n + 1 for n in padding if n is not None), default=0))
    return int(min(limits))


class CLIP(FrozenEncoder):
    """An OpenCLIP model: a name such as ``ViT-L-14`` with a tag, or a folder in OpenCLIP's format.

    The activation is the one that the weights were trained with. A folder's configuration names it,
    and OpenCLIP's table of tags has it for pretrained tags (OpenAI's weights need QuickGELU).
    """

    def __init__(
        self,
        source: str,
        *,
        pretrained: str | None = "openai",
        device: str = "cpu",
        follow_tag: bool = True,
    ):
        """
        Args:
            source: OpenCLIP model name, folder or package; see :mod:`ediffi_core.published`.
            pretrained: tag of the weights; unused for a folder.
            follow_tag: False for the activation of the model's own configuration, even if the
                weights need another. Older ensembles were trained that way.

        Raises:
            ValueError: The model cannot have the activation that the weights need, or its text
                tower gives no token sequences.
        """
        import open_clip

        source = resolve_source(source)
        local = Path(source).is_dir()
        name = f"local-dir:{source}" if local else source
        self.follows_tag = follow_tag and not local and _follows_tag(source, pretrained)
        """Whether the pretrained tag replaces the activation of the model's configuration."""

        with _LOADING:
            model, _, self.preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=None if local else pretrained,
                device=device,
                force_quick_gelu=self.follows_tag,
            )
        self.tokenizer: Any = open_clip.get_tokenizer(name)
        self.freeze(model, device)
        if not hasattr(self.model, "token_embedding"):
            raise ValueError(
                f"{source!r} is a CLIP whose text tower is not OpenCLIP's own transformer; "
                + READABLE
            )
        self._check_text_tower(source)
        self.text_dim: int = self.model.ln_final.weight.shape[0]
        self.dim: int = self.model.text_projection.shape[1]

    @property
    def recipe(self) -> str:
        """Activation, pooling, context length and image preprocessing."""
        from open_clip.transformer import QuickGELU

        model, size = self.model, self.model.visual.image_size
        preprocessing = {"size": size, **getattr(self.model.visual, "preprocess_cfg", {})}
        activation = "QuickGELU" if _has(model, QuickGELU) else "GELU"
        pictures = ", ".join(f"{k} {v}" for k, v in sorted(preprocessing.items()))
        pooled = model.text_pool_type
        return f"{activation}, {pooled} of {model.context_length} tokens; pictures of {pictures}"

    @property
    def identity(self) -> dict[str, str]:
        """Has an ``activation`` only if the tag chose it, as older shards have none."""
        chosen = {"activation": "QuickGELU of its tag"} if self.follows_tag else {}
        return super().identity | chosen

    @torch.inference_mode()
    def _check_text_tower(self, source: str) -> None:
        """Check that :meth:`text` gives the same pooled vectors as OpenCLIP's ``encode_text``."""
        model = self.model
        if model.attn_mask is None or not isinstance(model.text_projection, Tensor):
            what = "sees the whole text at once" if model.attn_mask is None else "projects it so"
            raise ValueError(
                f"{source!r} is a CLIP whose text tower {what} that its tokens cannot be read one "
                f"after another; {READABLE}"
            )
        if model.text_projection.is_meta:
            return  # a meta tensor has no values
        _, found = self.text(PROBES)
        own = model.encode_text(self.tokenizer(PROBES).to(self.device), normalize=True)
        apart = float((found - own.float().cpu()).norm(dim=1).max())
        if not apart < 1e-2:  # unit vectors; those of a wrong token differ by 0.1 or more
            raise ValueError(
                f"{source!r} is a CLIP that does not pool at the end token "
                f"(pool_type {model.text_pool_type!r}): its vectors would be "
                f"{apart:.2g} off; {READABLE}"
            )

    @torch.inference_mode()
    def text(
        self, captions: Sequence[str], *, batch_tokens: int = BATCH_TOKENS
    ) -> tuple[list[Tensor], Tensor]:
        """Encode captions.

        Captions of similar length share a batch, and duplicates are encoded once. The text tower is
        causal, so positions after the last end token of a batch are not computed.

        Returns:
            For each caption its sequence [tokens, text_dim], from start to end token, and the
            pooled vectors [N, dim] of unit length, the projections of the end tokens. All float32
            on the CPU.
        """
        model, unique = self.model, list(dict.fromkeys(captions))
        tokens = self.tokenizer(unique)
        ends = tokens.argmax(dim=1)  # the end token has the highest id of OpenAI's vocabulary
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for rows in batches_by_length((ends + 1).tolist(), batch_tokens):
            end = ends[rows]
            length = int(end.max()) + 1
            x = model.token_embedding(tokens[rows, :length].to(self.device))
            x = x + model.positional_embedding[:length]
            x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
            pooled = x[torch.arange(len(rows)), end.to(x.device)] @ model.text_projection
            pooled = torch.nn.functional.normalize(pooled.float(), dim=1).cpu()
            for row, states, vector, n in zip(rows, x.float().cpu(), pooled, end, strict=True):
                found[unique[row]] = states[: n + 1].clone(), vector
        return (
            [found[caption][0] for caption in captions],
            torch.stack([found[caption][1] for caption in captions]),
        )

    def spans(self, prompts: Sequence[str]) -> list[TokenSpans]:
        """Character spans of the tokens of :meth:`text`; (0, 0) for start and end tokens.

        Spans refer to the prompt as OpenCLIP cleans it: fixed unicode, single spaces, lower case.
        """
        tokenizer = self.tokenizer
        if not hasattr(tokenizer, "byte_encoder"):
            raise ValueError(
                f"{type(tokenizer).__name__} gives no token positions; paint-with-words "
                "needs a CLIP with OpenCLIP's own tokenizer, such as ViT-L-14"
            )
        ends = tokenizer(list(prompts)).argmax(dim=1).tolist()
        found = []
        for prompt, end in zip(prompts, ends, strict=True):
            text = tokenizer.clean_fn(prompt)
            spans = [(0, 0)]
            for piece in tokenizer.pat.finditer(text):
                spans += _byte_pairs(tokenizer, piece.group(), piece.start())
            found.append(TokenSpans(text, [*spans[:end], (0, 0)], tokenizer.clean_fn))
        return found

    @torch.inference_mode()
    def image(self, pictures: Sequence[Any]) -> Tensor:
        """Encode PIL images. → [N, dim] float32 on the CPU, of unit length"""
        batch = torch.stack([self.preprocess(p.convert("RGB")) for p in pictures]).to(self.device)
        pooled = self.model.encode_image(batch)
        return torch.nn.functional.normalize(pooled.float(), dim=1).cpu()


READABLE = "token sequences can be read from the ViT-B/L/H models such as ViT-L-14"

PROBES = ("", "a cat", "two grey dogs asleep on a red sofa, by a window")
"""Texts of different lengths, encoded in one batch by the check of the text tower."""


def _has(model: Any, kind: type) -> bool:
    return any(isinstance(m, kind) for m in model.modules())


def _follows_tag(model: str, pretrained: str | None) -> bool:
    """Whether a pretrained tag needs QuickGELU and the model's configuration has plain GELU.

    Raises:
        ValueError: The tag needs plain GELU, and the configuration has QuickGELU.
    """
    from open_clip import get_model_config, get_pretrained_cfg

    name = model.replace("/", "-")  # as OpenCLIP does
    tag = get_pretrained_cfg(name, pretrained) if pretrained else None
    if not tag:
        return False  # a file of weights: the model name alone decides
    has = bool((get_model_config(name) or {}).get("quick_gelu"))
    wants = bool(tag.get("quick_gelu"))
    if has and not wants:
        raise ValueError(
            f"the weights {pretrained!r} of {model!r} were trained with GELU, but this model "
            "uses QuickGELU; name the model without -quickgelu"
        )
    return wants and not has


def clip_side(source: str) -> int:
    """Side in pixels of a CLIP's input image, from its configuration; ValueError if unknown."""
    import open_clip

    source = resolve_source(source)
    if Path(source).is_dir():
        config = json.loads((Path(source) / "open_clip_config.json").read_text())["model_cfg"]
    else:
        config = open_clip.get_model_config(source.replace("/", "-"))
        if config is None:
            raise ValueError(f"{source!r} is neither a folder nor a model that OpenCLIP knows")
    size = config["vision_cfg"]["image_size"]
    return int(size[0] if isinstance(size, list | tuple) else size)


def batches_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts in batches of similar length.

    Args:
        lengths: tokens of each text.
        budget: most tokens of a batch, including padding.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[i] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the leading space of SentencePiece tokens, unless it is only space."""
    space = end - start - len(text[start:end].lstrip())
    return (start + space, end) if space < end - start else (start, end)


def _byte_pairs(tokenizer: Any, piece: str, start: int) -> list[tuple[int, int]]:
    """Character spans of the byte-pair tokens of a piece; a character may span several tokens."""
    at = [
        start + i for i, char in enumerate(piece) for _ in char.encode()
    ]  # character index of every byte
    tokens = tokenizer.bpe("".join(tokenizer.byte_encoder[b] for b in piece.encode())).split(" ")
    spans, done = [], 0
    for token in tokens:
        size = len(token.removesuffix("</w>"))
        spans.append((at[done], at[done + size - 1] + 1))
        done += size
    return spans


def embedding_specs(t5_dim: int, clip_text_dim: int, clip_dim: int) -> tuple[EmbeddingSpec, ...]:
    """eDiff-I's embeddings (section 4.2), in the order of their tokens (our default)."""
    return (
        EmbeddingSpec(name="clip_text", dim=clip_text_dim, kind="sequence"),
        EmbeddingSpec(name="t5", dim=t5_dim, kind="sequence"),
        EmbeddingSpec(name="clip_text_pooled", dim=clip_dim, kind="pooled", source="clip_text"),
        EmbeddingSpec(name="clip_image", dim=clip_dim, kind="pooled", attended=True),
    )


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad sequences [L_i, dim] to [N, L, dim], with a mask [N, L] that is True at tokens."""
    lengths = torch.tensor([len(s) for s in sequences])
    padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


@one_thread()
def encode_prompts(
    t5: T5,
    clip: CLIP,
    prompts: Sequence[str],
    more: Mapping[str, tuple[TextEncoder, EmbeddingKind]] | None = None,
) -> Conditioning:
    """Encode prompts into the conditioning for sampling; CLIP's image embedding is absent.

    Each is encoded by itself and by one thread: in a padded batch its embeddings would depend on
    the others, by rounding, and so they would on the number of threads.

    Args:
        more: further encoders: embedding name → encoder and kind of embedding.

    Raises:
        ValueError: An encoder returned values that are not finite.
    """
    clip_tokens, pooled = clip.text(prompts, batch_tokens=ALONE)
    t5_tokens = t5.text(prompts, batch_tokens=ALONE)
    sequences = {"clip_text": pad(clip_tokens), "t5": pad(t5_tokens)}
    vectors = {"clip_text_pooled": pooled, "clip_image": pooled.new_zeros(len(prompts), clip.dim)}
    for name, (encoder, kind) in (more or {}).items():
        if kind == "sequence":
            sequences[name] = pad(encoder.text(prompts, batch_tokens=ALONE))
        else:
            vectors[name] = torch.stack(encoder.pooled(prompts, batch_tokens=ALONE))
    cond = Conditioning(
        {name: tokens for name, (tokens, _) in sequences.items()},
        {name: mask for name, (_, mask) in sequences.items()},
        vectors,
    )
    for row, name in cond.non_finite_rows():
        raise ValueError(
            f"{name} of the prompt {prompts[row]!r} has values that are not finite; rephrase it, "
            "or load its encoder in float32"
        )
    return cond
