"""Executes a plan on Ray: what is ready, what fits, who failed, where a killed run goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from pipelines.dag.node import Amount
from pipelines.dag.plan import Given, Node, Plan, Verdict, made_meanwhile, ways_to_end
from pipelines.dag.scheduling import Candidate, less, startable
from pipelines.executor.console import Console
from pipelines.executor.ray_cluster import lacking, start_ray
from pipelines.executor.stopping import Stop
from pipelines.lineage import Lineage
from pipelines.reports import tree as tree_view
from pipelines.runs import meters
from pipelines.runs.claims import ClaimLost, Claims
from pipelines.runs.context import Board, Context, Result
from pipelines.runs.execution import Execution, now
from pipelines.runs.lease import LeaseLost
from pipelines.runs.threads import in_thread
from pipelines.store.artifacts import Store
from pipelines.training.preemption import Preempted

# Steps that themselves hand work to Ray run in the driver; the others run as a Ray task.
ORCHESTRATING = {"train", "embed", "adopt", "compare", "gate"}
GRACE_S = 25.0  # of the half minute that a pod has between SIGTERM and SIGKILL
CANCEL_GRACE_S = 300.0  # nobody is going to kill a driver that was asked to cancel
SAVE_EVERY_S = 5.0
HOST = socket.gethostname()


class Runner:
    """The loop: starts what is ready and fits; see :mod:`pipelines.dag.scheduling`."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        execution: Execution,
        lineage: Lineage,
        console: Console,
        stop: Stop,
        claims: Claims,
    ) -> None:
        self.plan, self.store, self.execution = plan, store, execution
        self.lineage, self.console, self.stop = lineage, console, stop
        self.claims = claims
        self.manifests: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, BaseException] = {}
        self.board: Any = None
        self.machine = meters.MachineMeter(store.root if store.is_local else None)
        self.measured = time.monotonic()
        self.weight = ways_to_end(plan)
        self.total = {"cpus": plan.spec.cpus, "gpus": plan.spec.gpus}
        self.begun: dict[str, float] = {}
        """When a node was started."""

        self.reported: dict[str, tuple[float, int]] = {}
        """When a node first said how far it is, and how far that was."""

        self.saved = 0.0

    def run(self) -> bool:
        """Runs to the end; True if every node is done."""
        todo = self.sort_out(self.plan.verdicts)
        if todo:
            self.console.say("starting Ray")
            start_ray(self.plan.spec.cpus, self.plan.spec.s3.variables())
            self.stop.listen()  # Ray has put a handler of its own
            try:
                self.work(todo)
            finally:
                with contextlib.suppress(OSError):  # of a driver that is gone they count no more
                    self.claims.release_all()
        if self.execution.state == "running":
            self.execution.state = "failed" if self.failed else "done"
        self.execution.ended = now()
        self.save()
        self.save_tree()
        self.store.sweep()
        return not self.failed

    def sort_out(self, verdicts: Mapping[str, Verdict]) -> list[Verdict]:
        """Takes what is done already; → what is to be done."""
        for verdict in verdicts.values():
            if verdict.manifest is not None:
                self.reuse(verdict, verdict.manifest)
        todo = [v for v in verdicts.values() if not v.cached]
        for verdict in todo:
            self.set_state(verdict, "waiting")
        return todo

    def reuse(self, verdict: Verdict, manifest: Mapping[str, Any]) -> None:
        self.manifests[verdict.node.id] = dict(manifest)
        self.set_state(verdict, "reused", seconds=manifest["seconds"])
        self.lineage.reused(verdict, self.manifests[verdict.node.id])

    def grow_on(self, node: Node, waiting: dict[str, Verdict]) -> None:
        if self.plan.is_growing and node.kind == "train":
            waiting |= {v.node.id: v for v in self.grow()}

    def grow(self) -> list[Verdict]:
        """Nodes that the plan has now that it had not before: of trees that are being grown."""
        before = self.plan
        self.plan = self.lineage.plan = before.again()
        new = {i: v for i, v in self.plan.verdicts.items() if i not in before.verdicts}
        for line in self.plan.news(before):
            self.console.say(line)
        self.weight = ways_to_end(self.plan)
        return self.sort_out(new)

    def work(self, todo: list[Verdict]) -> None:
        import ray

        self.board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        waiting = {v.node.id: v for v in todo}
        running: dict[Future[dict[str, Any]], Verdict] = {}
        while waiting or running:
            if self.stop.why:
                self.leave(running, waiting)
                return
            for verdict in self.ready(waiting, running.values()):
                if self.is_to_do(verdict, waiting):
                    del waiting[verdict.node.id]
                    self.set_state(verdict, "running")
                    self.lineage.started(verdict)
                    self.begun[verdict.node.id] = time.monotonic()
                    running[in_thread(self.perform, verdict, self.fence)] = verdict
            if not running:
                time.sleep(0.5)
            done, _ = wait(running, timeout=0.5, return_when="FIRST_COMPLETED")
            self.hear()
            for future in done:
                self.settle(running.pop(future), future, waiting)
            self.mind_limits(running.values())
            self.console.tick()

    def is_to_do(self, verdict: Verdict, waiting: dict[str, Verdict]) -> bool:
        """Takes a node for this driver; not one that another pipeline makes or has made."""
        node = verdict.node
        if other := self.claims.take(verdict.folder):
            pipeline, holder = other
            if "for" not in self.execution.nodes[node.id]:
                self.console.say(f"{node.id} is being made by pipeline {pipeline} ({holder})")
                self.set_state(verdict, "waiting", **{"for": pipeline})
            return False
        manifest = made_meanwhile(self.store, verdict)
        if manifest is None:
            return True
        self.claims.release(verdict.folder)
        del waiting[node.id]
        self.console.say(f"{node.id} reused: another pipeline has made it meanwhile")
        self.reuse(verdict, manifest)
        self.grow_on(node, waiting)
        return False

    def fence(self, verdict: Verdict) -> None:
        """Before a node is committed: whether this driver still may."""
        self.claims.lease.check()
        self.claims.check(verdict.folder)

    def mind_limits(self, running: Iterable[Verdict]) -> None:
        """Has training nodes that took too long save and leave."""
        for node in (v.node for v in running):
            hours = node.runtime.get("limit_hours")
            if hours and time.monotonic() - self.begun[node.id] > hours * 3600:
                self.board.stop.remote(
                    f"it took longer than the {hours:g} h of `limit_hours:`; its last checkpoint "
                    "is kept, and the next run goes on from it",
                    node.id,
                )

    def leave(
        self, running: dict[Future[dict[str, Any]], Verdict], waiting: dict[str, Verdict]
    ) -> None:
        """Has the training nodes save and leave, within the grace; all else is left undone."""
        self.execution.state = "cancelled" if self.stop.cancelled else "interrupted"
        reason = self.stop.why or ""
        saving = {f for f, verdict in running.items() if verdict.node.kind == "train"}
        begun = time.monotonic()
        said = f"{len(saving)} training nodes save and leave, in {self.grace_s:.0f} s at most"
        self.console.say(f"{reason}; {said}" if saving else reason)
        while saving and time.monotonic() < begun + self.grace_s:
            self.board.stop.remote(reason)  # again, as a killed board has forgotten it
            saving = wait(saving, timeout=0.5).not_done
            self.hear()
            self.console.tick()
        for future, verdict in running.items():
            if future.done() and not isinstance(future.exception(), Preempted):
                self.settle(verdict, future, waiting)
            else:
                self.set_state(verdict, self.execution.state)

    @property
    def grace_s(self) -> float:
        return GRACE_S if self.stop.signal else CANCEL_GRACE_S

    def ready(self, waiting: Mapping[str, Verdict], running: Iterable[Verdict]) -> list[Verdict]:
        """Nodes whose inputs are done and that start now."""
        able = [
            Candidate(id=i, need=v.node.need, priority=v.node.priority, way=self.weight[i])
            for i, v in waiting.items()
            if all(n in self.manifests for n in v.node.needs) and self.claims.is_due(v.folder)
        ]
        free: Amount = self.total
        for verdict in running:
            free = less(free, verdict.node.need)
        return [waiting[c.id] for c in startable(able, free)]

    def settle(
        self, verdict: Verdict, future: Future[dict[str, Any]], waiting: dict[str, Verdict]
    ) -> None:
        node = verdict.node
        error = future.exception()
        if error is None:
            manifest = self.manifests[node.id] = future.result()
            self.claims.release(verdict.folder)
            self.set_state(verdict, "done", seconds=manifest["seconds"])
            self.lineage.finished(verdict, manifest)
            self.console.done(node.id, manifest)
            self.grow_on(node, waiting)
            return
        if isinstance(error, LeaseLost):
            raise error
        if isinstance(error, ClaimLost):
            self.console.say(f"{node.id}: {error}; waits for it")
            waiting[node.id] = verdict
            self.set_state(verdict, "waiting")
            return
        self.claims.release(verdict.folder)
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

    def perform(
        self, verdict: Verdict, fence: Callable[[Verdict], None] = lambda _: None
    ) -> dict[str, Any]:
        """Runs one step to its committed manifest; in a thread of the driver.

        Args:
            fence: called before the commit; raises if it must not be.
        """
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
            manifests={role: self.manifests[i] for role, i in node.inputs.items()}
            | {role: finished(self.store, given) for role, given in node.given.items()},
        )
        reads = {**node.inputs, **node.observes}
        inputs = {role: self.plan.verdicts[i].folder for role, i in reads.items()}
        inputs |= {role: given.folder for role, given in node.given.items()}
        self.check_machines(node, ctx)
        if node.kind in ORCHESTRATING:
            result = perform_step(node.kind, ctx, dict(node.settings), inputs)
        else:
            task = ray.remote(
                num_cpus=node.cpus,
                num_gpus=node.gpus or None,
                label_selector=dict(node.labels) or None,
                max_retries=2,
            )(measured_step)
            try:
                result = ray.get(task.remote(node.kind, ctx, dict(node.settings), inputs))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
        fence(verdict)
        return commit(self.store, verdict, result, self.manifests, time.monotonic() - start)

    def check_machines(self, node: Node, ctx: Context) -> None:
        """Says that a task will wait; ValueError if what it would wait for cannot come."""
        gpus = 0 if node.kind in ORCHESTRATING else node.gpus  # theirs are of many machines
        if lacks := lacking(gpus, node.labels):
            if not os.environ.get("RAY_ADDRESS"):
                raise ValueError(f"needs a machine with {lacks}, and this one has not")
            ctx.report(message=f"waits for a machine with {lacks}")

    def hear(self) -> None:
        """Passes the steps' reports on to the console and the record."""
        import ray

        try:
            rows = ray.get(self.board.drain.remote())
        except ray.exceptions.RayActorError:
            return  # killed; Ray starts it again, and nothing but a few reports is lost
        for node, row in rows:
            self.tell(node, row)
        if rows and time.monotonic() - self.saved > SAVE_EVERY_S:
            with contextlib.suppress(OSError):  # a store that is away: training goes on
                self.save()
        self.measure()

    def tell(self, node: str, row: dict[str, Any]) -> None:
        state = self.execution.nodes[node]
        state.update(
            {k: row[k] for k in ("done", "of", "unit", "checkpoint", "picture") if k in row}
        )
        if "done" in row:
            self.rate(node, state, row)
        self.lineage.report(node, {"images": state.get("done", 0), **row})
        if "picture" in row:
            row = {**row, "picture": shown(self.store.full(row["picture"]))}
        self.console.report(node, row)

    def rate(self, node: str, state: dict[str, Any], row: dict[str, Any]) -> None:
        """Notes how fast a node is, for `ediffi status`."""
        moment = time.monotonic()
        since, first = self.reported.setdefault(node, (moment, row["done"]))
        rate = row.get("metrics", {}).get("images_per_s")
        if rate is None and row["done"] > first:
            rate = (row["done"] - first) / max(moment - since, 1e-6)
        if rate:
            state["rate"] = float(f"{rate:.4g}")
        state["heard"] = now()

    def measure(self) -> None:
        """Adds the machine's numbers to the nodes at work, if it is the one they work on."""
        moment = time.monotonic()
        if os.environ.get("RAY_ADDRESS") or moment - self.measured < meters.EVERY_S:
            return
        self.measured, numbers = moment, self.machine.read()
        for node, state in self.execution.nodes.items():
            if state["state"] == "running":
                self.tell(node, {"time_ms": int(time.time() * 1000), "metrics": numbers})

    def set_state(self, verdict: Verdict, state: str, **more: Any) -> None:
        node = verdict.node.id
        self.console.state(node, state)
        before = self.execution.nodes.get(node, {})
        made = before.get("folder") == verdict.folder and "seconds" in before
        told = {"since": now(), "attempt": self.execution.attempt, "by": HOST}
        if state == "reused" and made:  # by an earlier attempt of this very run
            told = {k: before[k] for k in told if k in before}
        self.execution.nodes[node] = {
            "state": state,
            "why": verdict.why,
            "folder": verdict.folder,
            **told,
            **more,
        }
        if state == "running":
            self.reported.pop(node, None)
        self.save()
        self.save_tree()

    def save(self) -> None:
        """Keeps the execution, unless another driver has it now."""
        self.claims.lease.ensure()
        self.saved = time.monotonic()
        self.execution.save(self.store)

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


def finished(store: Store, given: Given) -> dict[str, Any]:
    """The manifest of another plan's node."""
    manifest = store.manifest(given.folder)
    if manifest is None:
        raise ValueError(f"{store.full(given.folder)} is lost; run the pipeline that made it again")
    return manifest


def node_of(given: Given) -> str:
    return given.folder.removeprefix("nodes/").removesuffix(f"-{given.fingerprint}")


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
    inputs |= {
        role: {"node": node_of(given), "fingerprint": given.fingerprint}
        for role, given in node.given.items()
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
