"""Settings of ``ediffi serve`` and ``ediffi studio``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.spec.base import Strict


class Limits(Strict):
    """What one request may ask for; more is refused with status 400 or 413."""

    prompt_chars: int = Field(1000, ge=1)
    """Characters of a prompt, and of a negative or second prompt."""

    pictures: int = Field(8, ge=1)
    """Pictures of one request."""

    steps: int = Field(200, ge=1)
    """Sampling steps of a stage."""

    guidance: float = Field(100.0, gt=0, allow_inf_nan=False)
    """Guidance scale."""

    phrases: int = Field(16, ge=1)
    """Painted phrases of a picture."""

    styles: int = Field(4, ge=1)
    """Style references of a picture."""

    upload_pixels: int = Field(16_000_000, ge=1)
    """Pixels of a picture in a request, read from its header before it is decoded."""

    body_bytes: int = Field(32_000_000, ge=1024)
    """Size of a request."""


class Batching(Strict):
    """Pictures of several callers that are drawn at once; each has the bits it has alone."""

    pictures: int = Field(8, ge=1)
    """Pictures drawn at once, at most."""

    wait_ms: float = Field(5.0, ge=0, le=10_000, allow_inf_nan=False)
    """How long a free model waits for company of a first picture."""


class Queue(Strict):
    """Pictures that wait in a replica."""

    pictures: int = Field(64, ge=1)
    """Pictures that wait, at most; a request beyond is answered 429 with Retry-After."""

    deadline_s: float = Field(120.0, gt=0, allow_inf_nan=False)
    """Seconds after which a request is given up, answered 504. A request may ask for less."""


class Replicas(Strict):
    """Processes with a copy of the model each; Ray Serve starts and stops them by load."""

    min: int = Field(1, ge=1)
    max: int = Field(1, ge=1)
    target: float = Field(8.0, gt=0, allow_inf_nan=False)
    """Requests that a replica shall have at once, waiting ones included: more start another."""

    cpus: int = Field(1, ge=1)
    """CPUs, and threads of torch, of a replica."""

    gpus: float = Field(0, ge=0)
    """GPUs of a replica."""

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"`min: {self.min}` is above `max: {self.max}`")
        return self


class Filters(Strict):
    """Your own judges of prompts and pictures; none by default."""

    prompt: list[str] = Field(default_factory=list)
    """Entry points ``module:function`` that are given a prompt; see serving.md."""

    picture: list[str] = Field(default_factory=list)
    """Entry points ``module:function`` that are given a finished picture."""


class Marks(Strict):
    """How pictures say that a model has drawn them, besides the PNG's metadata."""

    visible: bool = False
    """Whether a sign is drawn into the lower right corner."""

    invisible: bool = False
    """Whether a watermark is added to the pixels, which ``ediffi serve --check FILE`` finds."""


class Serving(Strict):
    """A served model, and how it is served."""

    model: str
    """As ``MODEL`` of ``ediffi sample``: a pipeline's name, ``NAME@champion`` and so on."""

    storage: str = "ediffi-store"
    """Folder or URL of the store."""

    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own needs a token."""

    port: int = Field(8000, ge=0, le=65535)
    """0 for any that is free."""

    token_variable: str = "EDIFFI_TOKEN"
    """Environment variable with the token that callers give as ``Authorization: Bearer``."""

    allowed_hosts: list[str] = Field(default_factory=list)
    """Names by which callers may address the service beyond loopback; ``"*"`` for any."""

    residency: Literal["auto", "all", "current", "disk"] = "auto"
    """Where experts' weights are; ``auto``: on the device if all fit, else as many as do."""

    refresh_s: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Seconds between two looks at the registry, for a new champion or candidate."""

    models: int = Field(2, ge=1)
    """Ensembles that a replica has loaded at once, such as champion and candidate."""

    studio: bool = False
    """Whether the studio's page is served as well."""

    log_prompts: bool = False
    """Whether texts of requests are written to the log."""

    limits: Limits = Limits()
    batching: Batching = Batching()
    queue: Queue = Queue()
    replicas: Replicas = Replicas()
    filters: Filters = Filters()
    marks: Marks = Marks()
