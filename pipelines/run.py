"""Executes a plan on Ray: what is ready, what fits, who failed, where a killed run goes on."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from pipelines import tree_view
from pipelines.cluster import start_ray
from pipelines.console import Console
from pipelines.execution import Execution
from pipelines.lineage import Lineage
from pipelines.plan import Given, Node, Plan, Verdict, ways_to_end
from pipelines.steps import meters
from pipelines.steps.context import Board, Context, Result
from pipelines.stopping import Stop, in_thread
from pipelines.store.artifacts import Store
from pipelines.training.notice import Preempted

# Steps that themselves hand work to Ray run in the driver; the others run as a Ray task.
ORCHESTRATING = {"train", "embed", "adopt", "gate"}
GRACE_S = 25.0  # of the half minute that a pod has between SIGTERM and SIGKILL


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
        todo = self.sort_out(self.plan.verdicts)
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

    def sort_out(self, verdicts: Mapping[str, Verdict]) -> list[Verdict]:
        """Takes what is done already; → what is to be done."""
        for verdict in verdicts.values():
            if verdict.manifest is not None:
                self.manifests[verdict.node.id] = dict(verdict.manifest)
                self.set_state(verdict, "reused")
                self.lineage.reused(verdict, self.manifests[verdict.node.id])
        todo = [v for v in verdicts.values() if not v.cached]
        for verdict in todo:
            self.set_state(verdict, "waiting")
        return todo

    def grow(self) -> list[Verdict]:
        """Nodes that the plan has now that it had not before: of trees that are being grown."""
        before = self.plan.verdicts
        self.plan = self.lineage.plan = self.plan.again()
        new = {i: v for i, v in self.plan.verdicts.items() if i not in before}
        for line in self.plan.news(before):
            self.console.say(line)
        self.weight = ways_to_end(self.plan)
        return self.sort_out(new)

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
            if self.plan.is_growing and node.kind == "train":
                waiting |= {v.node.id: v for v in self.grow()}
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
            manifests={role: self.manifests[i] for role, i in node.inputs.items()}
            | {role: finished(self.store, given) for role, given in node.given.items()},
        )
        reads = {**node.inputs, **node.observes}
        inputs = {role: self.plan.verdicts[i].folder for role, i in reads.items()}
        inputs |= {role: given.folder for role, given in node.given.items()}
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
