"""Executes a plan on Ray: what is ready, what fits, who failed, where a killed run goes on."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from pipelines import tree_view
from pipelines.console import Console
from pipelines.lineage import Lineage
from pipelines.plan import Node, Plan, Verdict, ways_to_end
from pipelines.steps import meters
from pipelines.steps.context import Board, Context, Result
from pipelines.stopping import Stop, in_thread
from pipelines.store.artifacts import Store
from pipelines.training.notice import Preempted

# Steps that themselves hand work to Ray run in the driver; the others run as a Ray task.
ORCHESTRATING = {"train", "embed"}
LOOKERS = 5  # `ediffi status` holds a driver's lock for as long as it takes to look
START_ATTEMPTS = 3  # a busy machine may not start Ray within the 30 s that Ray gives itself
GRACE_S = 25.0  # of the half minute that a pod has between SIGTERM and SIGKILL
SPARE_CPUS = 2  # for reads: Ray Data hangs when actors hold every CPU


@dataclass
class Execution:
    """One run of a plan; kept in the store, so that it can be looked at and continued."""

    id: str
    pipeline: str
    fingerprint: str
    attempt: int
    state: str = "running"
    started: str = ""
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)

    def save(self, store: Store) -> None:
        store.write_json(f"executions/{self.id}.json", self.__dict__)
        store.write_json(f"executions/{self.pipeline}.latest.json", {"id": self.id})


def latest(store: Store, pipeline: str | None = None) -> Execution | None:
    """The last execution of a pipeline, or of any."""
    if pipeline is None:
        names = [f for f in store.files("executions") if f.endswith(".latest.json")]
        found = [latest(store, name.removesuffix(".latest.json")) for name in names]
        return max((e for e in found if e), key=lambda e: e.started, default=None)
    pointer = store.read_json(f"executions/{pipeline}.latest.json")
    return by_id(store, pointer["id"]) if pointer else None


def by_id(store: Store, execution: str) -> Execution | None:
    record = store.read_json(f"executions/{execution}.json")
    return Execution(**record) if record else None


@contextlib.contextmanager
def only_driver(store: Store, pipeline: str) -> Iterator[None]:
    """Holds the pipeline for this process; ValueError if another works on it.

    A bucket has no lock to hold. There it is for whoever starts drivers to start one at a time, as
    a Job or a CronJob with ``concurrencyPolicy: Forbid`` does; two would end in the same results,
    each file being whole whoever wrote it, but do the work twice.
    """
    if not store.is_local:
        yield
        return
    place = Path(store.full(f"executions/.{pipeline}.lock"))
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+") as lock:
        try:
            _lock(lock)
        except BlockingIOError:
            lock.seek(0)
            raise ValueError(
                f"pipeline {pipeline} is being run already (process {lock.read().strip()}); "
                "watch it with `ediffi status`"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _lock(file: TextIO) -> None:
    """Takes the lock, in spite of those who only look whether it is taken."""
    for attempt in range(LOOKERS + 1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == LOOKERS:
                raise
            time.sleep(0.1)


def is_driven(store: Store, pipeline: str) -> bool | None:
    """Whether a living driver holds the pipeline; None if it cannot be told, as in a bucket."""
    if not store.is_local:
        return None
    place = Path(store.full(f"executions/.{pipeline}.lock"))
    if not place.exists():
        return False
    with place.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def begin(plan: Plan, store: Store) -> Execution:
    """Continues the last execution if it was stopped before its end, else starts a new one."""
    last = latest(store, plan.spec.name)
    unfinished = last and last.state in ("running", "interrupted")
    if last and unfinished and last.fingerprint == plan.fingerprint:
        last.state = "running"
        last.attempt += 1
        return last
    if last and last.state == "running":
        last.state = "killed"
        last.save(store)
    now = datetime.now(UTC)
    return Execution(
        id=f"{plan.spec.name}-{now:%Y%m%d-%H%M%S-%f}",
        pipeline=plan.spec.name,
        fingerprint=plan.fingerprint,
        attempt=1,
        started=now.isoformat(timespec="seconds"),
    )


def start_ray(cpus: int, variables: Mapping[str, str] | None = None) -> None:
    """Connects to the cluster in RAY_ADDRESS, or starts one on this machine.

    Args:
        variables: of the environment that a cluster's processes need; those on this machine have
            this process's.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a second shell gets 401 on loopback
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ speaks on stderr
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import ray

    if not os.environ.get("RAY_ADDRESS"):
        # One machine is not preempted; the watcher is a process of each training node.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    where: dict[str, Any] = {
        "address": "local",  # else it would be one that somebody started here with `ray start`
        "num_cpus": cpus + SPARE_CPUS,
        "include_dashboard": False,
        "object_store_memory": 512 * 2**20,
    }
    if os.environ.get("RAY_ADDRESS"):
        where = {"runtime_env": {"env_vars": dict(variables)}} if variables else {}
    for attempt in range(START_ATTEMPTS):
        try:
            with stderr_closed():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
            break
        except Exception as error:  # Ray's own class for it is Exception
            if "timed out during startup" not in str(error) or attempt + 1 == START_ATTEMPTS:
                raise
            ray.shutdown()
    ray.data.DataContext.get_current().enable_progress_bars = False
    for noisy in ("ray.data", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


@contextlib.contextmanager
def stderr_closed() -> Iterator[None]:
    """Nothing reaches stderr meanwhile, not from C++ either: it is for the user's mistakes."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Runner:
    """The loop: starts what is ready and fits, in the order of the longest way to the end."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        execution: Execution,
        lineage: Lineage,
        console: Console,
        stop: Stop,
    ) -> None:
        self.plan, self.store, self.execution = plan, store, execution
        self.lineage, self.console, self.stop = lineage, console, stop
        self.manifests: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, BaseException] = {}
        self.board: Any = None
        self.machine = meters.MachineMeter(store.root if store.is_local else None)
        self.measured = time.monotonic()
        self.weight = ways_to_end(plan)

    def run(self) -> bool:
        """Runs to the end; True if every node is done."""
        for verdict in self.plan.verdicts.values():
            if verdict.manifest is not None:
                self.manifests[verdict.node.id] = dict(verdict.manifest)
                self.set_state(verdict, "reused")
                self.lineage.reused(verdict, self.manifests[verdict.node.id])
        todo = [v for v in self.plan.verdicts.values() if not v.cached]
        for verdict in todo:
            self.set_state(verdict, "waiting")
        if todo:
            self.console.say("starting Ray")
            start_ray(self.plan.spec.cpus, self.plan.spec.s3.variables())
            self.stop.listen()  # Ray has put a handler of its own
            self.work(todo)
        if self.execution.state != "interrupted":
            self.execution.state = "failed" if self.failed else "done"
        self.execution.save(self.store)
        self.save_tree()
        self.store.sweep()
        return not self.failed

    def work(self, todo: list[Verdict]) -> None:
        import ray

        self.board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        free = self.plan.spec.cpus
        waiting = {v.node.id: v for v in todo}
        running: dict[Future[dict[str, Any]], Verdict] = {}
        while waiting or running:
            if self.stop.signal:
                self.leave(running, waiting)
                return
            for verdict in self.ready(waiting):
                if verdict.node.cpus > free:
                    continue
                free -= verdict.node.cpus
                del waiting[verdict.node.id]
                self.set_state(verdict, "running")
                self.lineage.started(verdict)
                running[in_thread(self.perform, verdict)] = verdict
            finished, _ = wait(running, timeout=0.5, return_when="FIRST_COMPLETED")
            self.hear()
            for future in finished:
                verdict = running.pop(future)
                free += verdict.node.cpus
                self.settle(verdict, future, waiting)
            self.console.tick()

    def leave(
        self, running: dict[Future[dict[str, Any]], Verdict], waiting: dict[str, Verdict]
    ) -> None:
        """Has the training nodes save and leave, within the grace; all else is left undone."""
        self.execution.state = "interrupted"
        reason = f"the driver got {self.stop.signal.name}" if self.stop.signal else ""
        saving = {f for f, verdict in running.items() if verdict.node.kind == "train"}
        until = time.monotonic() + GRACE_S
        said = f"{len(saving)} training nodes save and leave, in {GRACE_S:.0f} s at most"
        self.console.say(f"{reason}; {said}" if saving else reason)
        while saving and time.monotonic() < until:
            self.board.stop.remote(reason)  # again, as a killed board has forgotten it
            saving = wait(saving, timeout=0.5).not_done
            self.hear()
            self.console.tick()
        for future, verdict in running.items():
            if future.done() and not isinstance(future.exception(), Preempted):
                self.settle(verdict, future, waiting)
            else:
                self.set_state(verdict, "interrupted")

    def ready(self, waiting: dict[str, Verdict]) -> list[Verdict]:
        """Nodes whose inputs are done, those with the longest way to the end first."""
        able = [v for v in waiting.values() if all(n in self.manifests for n in v.node.needs)]
        return sorted(able, key=lambda v: -self.weight[v.node.id])

    def settle(
        self, verdict: Verdict, future: Future[dict[str, Any]], waiting: dict[str, Verdict]
    ) -> None:
        node = verdict.node
        error = future.exception()
        if error is None:
            manifest = self.manifests[node.id] = future.result()
            self.set_state(verdict, "done")
            self.lineage.finished(verdict, manifest)
            self.console.done(node.id, manifest)
            return
        self.failed[node.id] = error
        self.set_state(verdict, "failed", error=reason(error))
        trace = f"executions/{self.execution.id}/{node.id}.txt"
        self.store.write(trace, "".join(traceback.format_exception(error)).encode())
        self.lineage.failed(verdict, str(error))
        self.console.failed(node.id, reason(error))
        if not isinstance(error, ValueError):
            self.console.say(f"its traceback is in {self.store.full(trace)}")
        for other in self.descendants(node.id):
            if other in waiting:
                self.set_state(waiting.pop(other), "skipped", error=f"{node.id} failed")
                self.console.say(f"{other} is skipped: it needs {node.id}")

    def perform(self, verdict: Verdict) -> dict[str, Any]:
        """Runs one step to its committed manifest; in a thread of the driver."""
        import ray

        node, start = verdict.node, time.monotonic()
        ctx = Context(
            node=node.id,
            fingerprint=verdict.fingerprint,
            store=self.store,
            folder=verdict.folder,
            cpus=node.cpus,
            runtime=dict(node.runtime),
            board=self.board,
            manifests={role: self.manifests[i] for role, i in node.inputs.items()},
        )
        reads = {**node.inputs, **node.observes}
        inputs = {role: self.plan.verdicts[i].folder for role, i in reads.items()}
        if node.kind in ORCHESTRATING:
            result = perform_step(node.kind, ctx, dict(node.settings), inputs)
        else:
            task = ray.remote(num_cpus=node.cpus, max_retries=2)(measured_step)
            try:
                result = ray.get(task.remote(node.kind, ctx, dict(node.settings), inputs))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
        return commit(self.store, verdict, result, self.manifests, time.monotonic() - start)

    def hear(self) -> None:
        """Passes the steps' reports on to the console and the record."""
        import ray

        try:
            rows = ray.get(self.board.drain.remote())
        except ray.exceptions.RayActorError:
            return  # killed; Ray starts it again, and nothing but a few reports is lost
        for node, row in rows:
            self.tell(node, row)
        self.measure()

    def tell(self, node: str, row: dict[str, Any]) -> None:
        state = self.execution.nodes[node]
        state.update(
            {k: row[k] for k in ("done", "of", "unit", "checkpoint", "picture") if k in row}
        )
        self.lineage.report(node, {"images": state.get("done", 0), **row})
        if "picture" in row:
            row = {**row, "picture": shown(self.store.full(row["picture"]))}
        self.console.report(node, row)

    def measure(self) -> None:
        """Adds the machine's numbers to the nodes at work, if it is the one they work on."""
        now = time.monotonic()
        if os.environ.get("RAY_ADDRESS") or now - self.measured < meters.EVERY_S:
            return
        self.measured, numbers = now, self.machine.read()
        for node, state in self.execution.nodes.items():
            if state["state"] == "running":
                self.tell(node, {"time_ms": int(time.time() * 1000), "metrics": numbers})

    def set_state(self, verdict: Verdict, state: str, **more: Any) -> None:
        self.console.state(verdict.node.id, state)
        self.execution.nodes[verdict.node.id] = {
            "state": state,
            "why": verdict.why,
            "folder": verdict.folder,
            **more,
        }
        self.execution.save(self.store)
        self.save_tree()

    def save_tree(self) -> None:
        """Keeps what `ediffi tree` shows: the truth is in the store, not in MLflow."""
        tree = tree_view.build(self.plan, self.execution, self.manifests)
        self.store.write_json(f"executions/{self.execution.id}.tree.json", tree)

    def descendants(self, node: str) -> set[str]:
        found = {node}
        for verdict in self.plan.verdicts.values():
            if found & set(verdict.node.needs):
                found.add(verdict.node.id)
        return found - {node}


def reason(error: BaseException) -> str:
    """Why a step failed, in one line; of Ray's long reports it is the last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ValueError):
        return " ".join(lines)
    return lines[-1] if lines else type(error).__name__


def shown(place: str) -> str:
    """A path as short as it can be said from here; a bucket's address as it is."""
    return place if "://" in place else min(place, os.path.relpath(place), key=len)


def perform_step(
    kind: str, ctx: Context, settings: dict[str, Any], inputs: dict[str, str]
) -> Result:
    """Calls the step of a kind; where it runs is the caller's business."""
    result: Result = import_module(f"pipelines.steps.{kind}").step(ctx, settings, inputs)
    return result


def measured_step(
    kind: str, ctx: Context, settings: dict[str, Any], inputs: dict[str, str]
) -> Result:
    """A step that has its process to itself, with the process's numbers in the record."""
    with meters.metered(ctx):
        return perform_step(kind, ctx, settings, inputs)


def commit(
    store: Store, verdict: Verdict, result: Result, manifests: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Declares a node done, and leaves word of it for the next plan's reasons."""
    node: Node = verdict.node
    inputs = {
        role: {"node": i, "fingerprint": manifests[i]["fingerprint"]}
        for role, i in node.inputs.items()
    }
    manifest = store.commit(
        verdict.folder,
        result.files,
        {
            "kind": node.kind,
            "name": node.name,
            "fingerprint": verdict.fingerprint,
            "settings": dict(node.settings),
            "inputs": inputs,
            "metrics": result.metrics,
            "info": result.info,
            "seconds": round(seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    word = {k: manifest[k] for k in ("fingerprint", "settings", "inputs")}
    store.write_json(f"nodes/{node.id}.latest.json", word)
    return manifest
