"""The frozen encoders: T5 for text (or another text encoder), CLIP for text and pictures.

By name, or from a local folder.

The one module that imports transformers and open_clip, and only when an encoder is loaded.
"""

from __future__ import annotations

import json
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
from ediffi_core.published import located

Kind = Literal["sequence", "pooled"]

MAX_TOKENS = 256
"""Of a caption, as the paper's T5 reads it; an encoder of fewer positions reads fewer."""

BATCH_TOKENS = 8192
"""Tokens encoded together, padding counted: what bounds an encoder's memory."""


class Frozen:
    """A network that is used as it was published."""

    model: Any
    device: str

    def freeze(self, model: Any, device: str) -> None:
        self.model, self.device = model.eval().requires_grad_(False).to(device), device

    @cached_property
    def sha256(self) -> str:
        """Of the weights, as they are loaded."""
        return weights_sha256(self.model.state_dict())

    @property
    def how(self) -> str:
        """In words, what an embedding depends on besides the weights and their type."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, str]:
        """What shards say of their encoder: of equal ones, embeddings may be mixed."""
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        return {"sha256": self.sha256, "dtype": dtype, "how": self.how}


class TextEncoder(Frozen):
    """A text encoder in the Hugging Face format: T5, mT5, ByT5, BERT …

    By name, by folder, or by the package that holds it (:func:`ediffi_core.published.located`).
    """

    def __init__(self, source: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32):
        from transformers import AutoModelForTextEncoding, AutoTokenizer

        source = located(source)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
        self.freeze(AutoModelForTextEncoding.from_pretrained(source, dtype=dtype), device)
        self.dim: int = self.model.config.hidden_size
        self.longest = longest_text(self.tokenizer, self.model)
        """Tokens of a caption that are read; what is behind them is cut off."""

    @property
    def how(self) -> str:
        return f"up to {self.longest} tokens"

    @torch.inference_mode()
    def text(self, captions: Sequence[str], *, batch_tokens: int = BATCH_TOKENS) -> list[Tensor]:
        """One ``[tokens, dim]`` float32 tensor a caption, at its true length. CPU.

        Captions of like length are encoded together, and equal ones once.
        """
        unique = list(dict.fromkeys(captions))
        ids = self.tokenizer(unique, truncation=True, max_length=self.longest).input_ids
        found: dict[str, Tensor] = {}
        for rows in by_length([len(i) for i in ids], batch_tokens):
            batch = self.tokenizer.pad({"input_ids": [ids[r] for r in rows]}, return_tensors="pt")
            batch = batch.to(self.device)
            out = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            hidden = out.last_hidden_state.float().cpu()
            for row, states in zip(rows, hidden, strict=True):
                found[unique[row]] = states[: len(ids[row])].clone()
        return [found[caption] for caption in captions]

    def pooled(self, captions: Sequence[str], *, batch_tokens: int = BATCH_TOKENS) -> list[Tensor]:
        """One ``[dim]`` vector a caption: the mean of its tokens."""
        return [tokens.mean(dim=0) for tokens in self.text(captions, batch_tokens=batch_tokens)]

    def spans(self, prompts: Sequence[str]) -> list[TokenSpans]:
        """Where each token of :meth:`text` stands in its prompt; (0, 0) for the end token."""
        batch = self.tokenizer(
            list(prompts), truncation=True, max_length=self.longest, return_offsets_mapping=True
        )
        return [
            TokenSpans(prompt, [_without_space(prompt, *span) for span in spans])
            for prompt, spans in zip(prompts, batch.offset_mapping, strict=True)
        ]


class T5(TextEncoder):
    """The paper's first: ``google/t5-v1_1-xxl``."""


def longest_text(tokenizer: Any, model: Any) -> int:
    """Tokens that a text encoder can read, at most :data:`MAX_TOKENS`.

    As its tokenizer and its configuration say. Of a table of positions that counts from behind the
    padding's number (RoBERTa's), those before it are no text's.
    """
    limits = [MAX_TOKENS, tokenizer.model_max_length]
    if positions := getattr(model.config, "max_position_embeddings", None):
        tables = (m for name, m in model.named_modules() if "position_embedding" in name)
        kept_free = (getattr(m, "padding_idx", None) for m in tables)
        limits.append(positions - max((n + 1 for n in kept_free if n is not None), default=0))
    return int(min(limits))


class CLIP(Frozen):
    """An OpenCLIP model: ``ViT-L-14`` with its pretrained tag, or a folder in OpenCLIP's format.

    The activation is the one that the weights were trained with: of a folder its configuration
    says which, of a pretrained tag OpenCLIP's list of tags (OpenAI's weights need QuickGELU).
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
            follow_tag: False for the activation of the model's own configuration, whatever the
                weights need: what models were trained with before tags were followed.

        Raises:
            ValueError: The weights were trained with another activation than the model can have,
                or token sequences cannot be read from its text tower.
        """
        import open_clip

        source = located(source)
        local = Path(source).is_dir()
        name = f"local-dir:{source}" if local else source
        self.follows_tag = follow_tag and not local and _follows_tag(source, pretrained)
        """Whether the pretrained tag asks for another activation than the model's own."""

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
    def how(self) -> str:
        """Its activation, how it pools, how long a text it reads, and how it sees a picture."""
        from open_clip.transformer import QuickGELU

        model, size = self.model, self.model.visual.image_size
        seen = {"size": size, **getattr(self.model.visual, "preprocess_cfg", {})}
        activation = "QuickGELU" if _has(model, QuickGELU) else "GELU"
        pictures = ", ".join(f"{k} {v}" for k, v in sorted(seen.items()))
        pooled = model.text_pool_type
        return f"{activation}, {pooled} of {model.context_length} tokens; pictures of {pictures}"

    @property
    def identity(self) -> dict[str, str]:
        """With an ``activation`` where the tag chose it; shards without one had the model's own."""
        chosen = {"activation": "QuickGELU of its tag"} if self.follows_tag else {}
        return super().identity | chosen

    @torch.inference_mode()
    def _check_text_tower(self, source: str) -> None:
        """Compares the pooled vectors that :meth:`text` reads with those of OpenCLIP's own."""
        model = self.model
        if model.attn_mask is None or not isinstance(model.text_projection, Tensor):
            what = "sees the whole text at once" if model.attn_mask is None else "projects it so"
            raise ValueError(
                f"{source!r} is a CLIP whose text tower {what} that its tokens cannot be read one "
                f"after another; {READABLE}"
            )
        if model.text_projection.is_meta:
            return  # it has no values
        _, found = self.text(PROBES)
        own = model.encode_text(self.tokenizer(PROBES).to(self.device), normalize=True)
        apart = float((found - own.float().cpu()).norm(dim=1).max())
        if not apart < 1e-2:  # of unit vectors; a wrong token's is 0.1 and more apart
            raise ValueError(
                f"{source!r} is a CLIP that takes a text's vector from elsewhere than its end "
                f"token (pool_type {model.text_pool_type!r}): read as the others are, it would be "
                f"{apart:.2g} off; {READABLE}"
            )

    @torch.inference_mode()
    def text(
        self, captions: Sequence[str], *, batch_tokens: int = BATCH_TOKENS
    ) -> tuple[list[Tensor], Tensor]:
        """→ the ``[tokens, text_dim]`` sequence of each caption, and pooled ``[N, dim]``. CPU.

        A sequence runs from the start token to the end token, whose projection is the pooled one.
        Captions of like length are encoded together, and equal ones once. The tower is causal, so
        what stands behind the last end token of a batch need not be computed.
        """
        model, unique = self.model, list(dict.fromkeys(captions))
        tokens = self.tokenizer(unique)
        ends = tokens.argmax(dim=1)  # the end token has the highest id of OpenAI's vocabulary
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for rows in by_length((ends + 1).tolist(), batch_tokens):
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
        """Where each token of :meth:`text` stands; (0, 0) for the start and end tokens.

        The text is the prompt as OpenCLIP cleans it: mended, of single spaces, in lower case.
        """
        tokenizer = self.tokenizer
        if not hasattr(tokenizer, "byte_encoder"):
            raise ValueError(
                f"{type(tokenizer).__name__} does not say where its tokens stand; paint-with-words "
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
        """PIL pictures → pooled ``[N, dim]``, of unit length. CPU."""
        batch = torch.stack([self.preprocess(p.convert("RGB")) for p in pictures]).to(self.device)
        pooled = self.model.encode_image(batch)
        return torch.nn.functional.normalize(pooled.float(), dim=1).cpu()


READABLE = "token sequences can be read from the ViT-B/L/H models such as ViT-L-14"

PROBES = ("", "a cat", "two grey dogs asleep on a red sofa, by a window")
"""Texts of different lengths, in one batch."""


def _has(model: Any, kind: type) -> bool:
    return any(isinstance(m, kind) for m in model.modules())


def _follows_tag(model: str, pretrained: str | None) -> bool:
    """Whether a pretrained tag needs QuickGELU where the model's configuration has none.

    Raises:
        ValueError: It needs the plain GELU, and the configuration has QuickGELU.
    """
    from open_clip import get_model_config, get_pretrained_cfg

    name = model.replace("/", "-")  # as OpenCLIP reads it
    tag = get_pretrained_cfg(name, pretrained) if pretrained else None
    if not tag:
        return False  # a file of weights: the model's name says what they need
    has = bool((get_model_config(name) or {}).get("quick_gelu"))
    wants = bool(tag.get("quick_gelu"))
    if has and not wants:
        raise ValueError(
            f"the weights {pretrained!r} of {model!r} were trained with GELU, and this model "
            "computes with QuickGELU; name the model without -quickgelu"
        )
    return wants and not has


def clip_side(source: str) -> int:
    """Side of the pictures that a CLIP looks at, from its description alone."""
    import open_clip

    source = located(source)
    if Path(source).is_dir():
        config = json.loads((Path(source) / "open_clip_config.json").read_text())["model_cfg"]
    else:
        config = open_clip.get_model_config(source.replace("/", "-"))
        if config is None:
            raise ValueError(f"{source!r} is neither a folder nor a model that OpenCLIP knows")
    size = config["vision_cfg"]["image_size"]
    return int(size[0] if isinstance(size, list | tuple) else size)


def by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Numbers of texts in batches of like length, none of which pads to more than the budget."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[i] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _without_space(text: str, start: int, end: int) -> tuple[int, int]:
    """SentencePiece's tokens begin with the space before a word; some are nothing but it."""
    space = end - start - len(text[start:end].lstrip())
    return (start + space, end) if space < end - start else (start, end)


def _byte_pairs(tokenizer: Any, piece: str, start: int) -> list[tuple[int, int]]:
    """The characters under each byte-pair token of a piece; a character may be under several."""
    at = [start + i for i, char in enumerate(piece) for _ in char.encode()]  # of every byte
    tokens = tokenizer.bpe("".join(tokenizer.byte_encoder[b] for b in piece.encode())).split(" ")
    spans, done = [], 0
    for token in tokens:
        size = len(token.removesuffix("</w>"))
        spans.append((at[done], at[done + size - 1] + 1))
        done += size
    return spans


def embedding_specs(t5_dim: int, clip_text_dim: int, clip_dim: int) -> tuple[EmbeddingSpec, ...]:
    """eDiff-I's conditioning, in the order its tokens are attended (the order is our default)."""
    return (
        EmbeddingSpec(name="clip_text", dim=clip_text_dim, kind="sequence"),
        EmbeddingSpec(name="t5", dim=t5_dim, kind="sequence"),
        EmbeddingSpec(name="clip_text_pooled", dim=clip_dim, kind="pooled", source="clip_text"),
        EmbeddingSpec(name="clip_image", dim=clip_dim, kind="pooled", attended=True),
    )


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ragged ``[L_i, dim]`` → padded ``[N, L, dim]`` and its mask ``[N, L]``."""
    lengths = torch.tensor([len(s) for s in sequences])
    padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def encode_prompts(
    t5: T5,
    clip: CLIP,
    prompts: Sequence[str],
    more: Mapping[str, tuple[TextEncoder, Kind]] | None = None,
) -> Conditioning:
    """Prompts → conditioning for sampling; no picture, so CLIP's image embedding is absent.

    Args:
        more: further encoders: the embedding's name → encoder, and which embedding of it.

    Raises:
        ValueError: An encoder's values are not finite for a prompt.
    """
    clip_tokens, pooled = clip.text(prompts)
    sequences = {"clip_text": pad(clip_tokens), "t5": pad(t5.text(prompts))}
    vectors = {"clip_text_pooled": pooled, "clip_image": torch.zeros(len(prompts), clip.dim)}
    for name, (encoder, kind) in (more or {}).items():
        if kind == "sequence":
            sequences[name] = pad(encoder.text(prompts))
        else:
            vectors[name] = torch.stack(encoder.pooled(prompts))
    cond = Conditioning(
        {name: tokens for name, (tokens, _) in sequences.items()},
        {name: mask for name, (_, mask) in sequences.items()},
        vectors,
    )
    for row, name in cond.not_finite():
        raise ValueError(
            f"{name} of the prompt {prompts[row]!r} has values that are not finite; write it "
            "otherwise, or load its encoder in float32"
        )
    return cond
