"""The ensembles that a replica has loaded, which follow what their names mean."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ediffi_core.loading import Residency
from pipelines.models.text_to_image import TextToImage
from pipelines.serving import residency
from pipelines.serving.engine import ModelInfo
from pipelines.serving.errors import NotReady, UnknownModel
from pipelines.serving.logs import log
from pipelines.serving.meters import Meters
from pipelines.serving.targets import ROLES, Names, Role, Target
from pipelines.spec.serving import Serving

FIRST_PROMPT = "a picture"
"""What a newly loaded ensemble draws before it is switched to."""

RETRY = 10
"""A model that failed is tried again after so many times ``Serving.refresh_s``."""

Load = Callable[[Path, Residency, str | None], TextToImage]


@dataclass(eq=False)
class Loaded:
    """An ensemble in memory."""

    target: Target
    model: TextToImage
    most_pictures: int
    """Pictures that it can draw at once; fewer once memory has not sufficed."""

    used: float = 0.0
    """Time of :func:`time.monotonic`."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a role has not the model that it means."""

    reason: str
    target: Target | None = None
    """What could not be loaded; None if nothing was found."""

    until: float = 0.0
    """It is tried again from this time on, or after a change of the registry."""

    def bars(self, target: Target) -> bool:
        """Whether a target is not to be tried now."""
        return (
            self.target is not None
            and (self.target.key, self.target.registry) == (target.key, target.registry)
            and time.monotonic() < self.until
        )


class LoadedModels:
    """Loads ensembles by role, in a thread of its own, and exchanges them when roles change.

    A new ensemble is loaded beside the old one, which goes on drawing, and replaces it after it has
    drawn a first picture. While that takes place there is one more in memory than
    ``Serving.models``.
    """

    def __init__(
        self,
        serving: Serving,
        meters: Meters,
        *,
        changed: Callable[[], None],
        failed: Callable[[Role, NotReady], None],
        load: Load = TextToImage.load,
    ) -> None:
        """
        Args:
            changed: called after a model was loaded.
            failed: called after a model could not be loaded whose role has none.
            load: reads an ensemble; arguments as of :meth:`TextToImage.load`.

        Raises:
            ValueError: There is no such model in the store.
        """
        self.serving, self.meters, self.names = serving, meters, Names(serving)
        self._changed, self._failed, self._load = changed, failed, load
        self._targets: dict[Role, Target] = {"served": self.names.find("served")}
        self._current: dict[Role, Loaded] = {}
        self._failures: dict[Role, Failure] = {}
        self._wanted: list[Role] = ["served"]
        self.is_ready = False
        """Whether the served model has been loaded; it may be unloaded for another meanwhile."""

        self._closed = False
        self._condition = threading.Condition()
        self._look_up(ROLES[1:])
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread that loads is running."""
        return self._thread.is_alive()

    @property
    def trouble(self) -> str | None:
        """Why roles have not the models that they mean; None if all have."""
        return " ".join(dict.fromkeys(f.reason for f in self._failures.values())) or None

    def role_of(self, name: str | None) -> Role:
        """The role that an order's ``model`` names.

        Raises:
            UnknownModel: Nothing is called so here.
            NotReady: It is not loaded and cannot be.
        """
        role, served = self.names.role_of(name), self.serving.model
        if role is None:
            said = str(name)[:80]
            raise UnknownModel(
                f"there is no model {said!r} here; ask for {served!r}, 'champion' or 'candidate'"
            )
        if role not in self._targets:
            raise UnknownModel(f"{self.names.pipeline} has no {role} yet; ask for {served!r}")
        if role not in self._current and role in self._failures:
            raise self._unavailable(role)
        return role

    def label(self, role: Role) -> str:
        """Name of a role's model for metrics."""
        current = self._current.get(role)
        return (current.target if current else self._targets[role]).label

    def get(self, role: Role) -> Loaded | None:
        """The model of a role; None while it is not loaded."""
        with self._condition:
            found = self._current.get(role)
            if found:
                found.used = time.monotonic()
            return found

    def want(self, role: Role) -> None:
        """Load the model of a role, if it is not loaded."""
        with self._condition:
            if role not in self._wanted:
                self._wanted.append(role)
            self._condition.notify_all()

    def wait_ready(self) -> None:
        """Wait until the served model is loaded; ValueError if it cannot be."""
        with self._condition:
            self._condition.wait_for(
                lambda: self.is_ready or "served" in self._failures or self._closed
            )
            if not self.is_ready:
                raise ValueError(self.trouble or "the service has ended")

    def described(self) -> list[ModelInfo]:
        """The different models that can be asked for, the served one first."""
        current, targets = self._current, self._targets
        found: dict[object, ModelInfo] = {}
        for role in ROLES:
            loaded = current.get(role)
            target = loaded.target if loaded else targets.get(role)
            if target and target.key not in found:
                stages = loaded.model.stages if loaded else None
                found[target.key] = self.names.describe(role, target, stages)
        return list(found.values())

    def close(self) -> None:
        """End the thread; while it loads a model, after that."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException:
            log.critical("the thread that loads models has died", exc_info=True)

    def _follow(self) -> None:
        look = time.monotonic() + self.serving.refresh_s
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._wanted or self._closed, timeout=max(0, look - time.monotonic())
                )
                if self._closed:
                    return
                wanted, self._wanted = self._wanted, []
            for role in wanted:
                if role not in self._current and role in self._targets:
                    self._bring(role, self._targets[role])
            if time.monotonic() >= look:
                self._look()
                look = time.monotonic() + self.serving.refresh_s

    def _look(self) -> None:
        """Look what the roles mean now, and exchange the models of those that have changed."""
        for role in self._look_up(ROLES):
            target, current = self._targets[role], self._current.get(role)
            if current and current.target.key == target.key:
                current.target = target  # its aliases may be others now
                self._forget(role)
            elif current or (role == "served" and not self.is_ready):
                self._bring(role, target)
            elif (failure := self._failures.get(role)) and not failure.bars(target):
                self._forget(role)

    def _look_up(self, roles: Sequence[Role]) -> list[Role]:
        """Look up targets; those that cannot be found are noted. Returns what was found."""
        found: list[Role] = []
        for role in roles:
            try:
                if role in self.names.roles():
                    self._targets = {**self._targets, role: self.names.find(role)}
                    found.append(role)
            except (ValueError, OSError) as error:
                reason = f"The {role} model of {self.names.pipeline} is not found: {error}"
                self._note(role, Failure(reason=reason))
        return found

    def _bring(self, role: Role, target: Target) -> None:
        """Load a role's model, unless it failed lately. After an error, all stays as it was."""
        for failure in self._failures.values():
            if failure.bars(target):
                self._note(role, failure)
                return
        shared = next((m for m in self._current.values() if m.target.key == target.key), None)
        try:
            loaded = shared or self._open_apart(role, target)
        except Exception as error:  # whatever is wrong with a model, the service goes on
            if not isinstance(error, ValueError | OSError):
                log.exception("loading %s", target.id)
            failure = Failure(
                reason=f"{target.id} cannot be used: {error}",
                target=target,
                until=time.monotonic() + RETRY * self.serving.refresh_s,
            )
            self._note(role, failure)
            return
        with self._condition:
            is_switch = role in self._current
            loaded.used = time.monotonic()
            self._current = {**self._current, role: loaded}
            self.is_ready |= role == "served"
            self._failures.pop(role, None)
            self._trim(self.serving.models)
            self._condition.notify_all()
        if is_switch:
            log.info("%s is %s from now on", role, target.id)
            self.meters.add("ediffi_serve_model_switches", outcome="switched")
        self._changed()

    def _open_apart(self, role: Role, target: Target) -> Loaded:
        """As `_open`, in a thread that ends with it.

        OpenMP keeps the workers of a thread that has drawn for as long as that thread lives. With
        more workers than processors they no longer spin for work, and the thread that draws takes
        twice as long: so the thread that loads must not keep workers of its own.
        """
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(self._open, role, target).result()

    def _open(self, role: Role, target: Target) -> Loaded:
        """Load an ensemble, and draw a first picture with it."""
        if role not in self._current:
            with self._condition:
                self._trim(self.serving.models - 1)
        where, why = self._residency(target)
        log.info("loading %s with residency %r: %s", target.id, where, why)
        model = self._load(target.place, where, target.manifest["store"])
        side = target.manifest["stages"][-1]["resolution"]
        drawn = model.sample([FIRST_PROMPT], seed=0)
        if drawn.shape != (1, side, side, 3):
            raise ValueError(f"its pictures have shape {drawn.shape[1:]}, not {(side, side, 3)}")
        return Loaded(target, model, self.serving.batching.pictures)

    def _residency(self, target: Target) -> tuple[Residency, str]:
        if self.serving.residency != "auto":
            return self.serving.residency, "the settings say so"
        return residency.choose(target.manifest, on_gpu=torch.cuda.is_available())

    def _trim(self, most: int) -> None:
        """Unload the models that were used least lately; a batch at work keeps its own."""
        while len(models := {id(m): m for m in self._current.values()}) > most:
            oldest = min(models.values(), key=lambda m: m.used)
            log.info("unloading %s", oldest.target.id)
            self._current = {r: m for r, m in self._current.items() if m is not oldest}

    def _note(self, role: Role, failure: Failure) -> None:
        """Remember a failure, and log it once."""
        before = self._failures.get(role)
        with self._condition:
            self._failures[role] = failure
            self._condition.notify_all()
        if before is None or before.reason != failure.reason:
            log.warning("%s", failure.reason)
            if role in self._current and failure.target:
                self.meters.add("ediffi_serve_model_switches", outcome="refused")
        if role not in self._current:
            self._failed(role, self._unavailable(role))

    def _forget(self, role: Role) -> None:
        with self._condition:
            self._failures.pop(role, None)

    def _unavailable(self, role: Role) -> NotReady:
        what = self.serving.model if role == "served" else role
        return NotReady(
            f"the model {what!r} cannot be loaded", retry_after_s=RETRY * self.serving.refresh_s
        )
