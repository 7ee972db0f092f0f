"""Run a plan on Ray: start the nodes that are ready and fit, commit results, handle failures."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from pipelines.dag.node import Resources
from pipelines.dag.plan import (
    Node,
    Plan,
    Verdict,
    dependents,
    finished_elsewhere,
    path_lengths,
)
from pipelines.dag.scheduling import Candidate, startable, subtract
from pipelines.executor.commit import commit, external_manifests
from pipelines.executor.console import Console
from pipelines.executor.outlook import Outlook
from pipelines.executor.patience import Patience
from pipelines.executor.progress import Progress
from pipelines.executor.ray_cluster import start_ray
from pipelines.executor.run_record import RunRecord
from pipelines.executor.run_step import run_step
from pipelines.executor.stopping import Stop
from pipelines.formatting import printable
from pipelines.lineage import Lineage
from pipelines.reports import status
from pipelines.reports import tree as tree_view
from pipelines.runs.claims import ClaimLost, Claims
from pipelines.runs.collect import check_present, is_collecting
from pipelines.runs.context import Context, ProgressBoard, Result
from pipelines.runs.execution import Execution, now
from pipelines.runs.lease import LeaseLost
from pipelines.runs.threads import in_thread
from pipelines.store.artifacts import Store
from pipelines.training.preemption import Preempted
from pipelines.training.warm import POOL, Shape

CANCEL_GRACE_S = 300.0
"""Seconds that training nodes may take to save after `ediffi cancel`: no SIGKILL follows."""

WORKERS_END_S = 5.0
"""How long idle warm workers may take to end; those that are left end with the driver."""

SAVE_EVERY_S = 5.0
"""How often progress is written to the run's record."""


class Runner:
    """Runs the nodes of a plan; :mod:`pipelines.dag.scheduling` decides which start when."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        execution: Execution,
        lineage: Lineage,
        console: Console,
        stop: Stop,
        claims: Claims,
        metrics_port: int | None = None,
    ) -> None:
        """
        Args:
            metrics_port: as of :func:`start_ray`.
        """
        self.metrics_port = metrics_port
        self.outlook: Outlook | None = None
        """While nodes run: the estimate of the remaining time, and the metrics."""

        self.plan, self.store, self.execution = plan, store, execution
        self.lineage, self.console, self.stop = lineage, console, stop
        self.claims = claims
        self.patiently = Patience(
            60 * plan.spec.storage_timeout_minutes, console.log, lambda: stop.why is not None
        )
        self.record = RunRecord(execution, claims.lease, self.patiently, self.tree)
        self.progress = Progress(store, execution, lineage, console)
        self.manifests: dict[str, dict[str, Any]] = {}
        """Node id → manifest, of all nodes that are done."""

        self.failed: dict[str, BaseException] = {}
        """Node id → error, of all nodes that failed."""

        self.board: Any = None
        """Handle of the :class:`ProgressBoard` actor."""

        self.path_lengths, self.dependents = path_lengths(plan), dependents(plan)
        self.total = {"cpus": plan.spec.cpus, "gpus": plan.spec.gpus}
        """Resources that all nodes together may use."""

    def run(self) -> bool:
        """Run the plan to its end.

        Returns:
            Whether no node failed.

        Raises:
            LeaseLost: Another driver has taken over the pipeline.
        """
        todo = self.reuse_finished(self.plan.verdicts)
        if todo:
            self.console.log("starting Ray")
            spec = self.plan.spec
            start_ray(spec.cpus, spec.s3.variables(), self.metrics_port)
            self.stop.listen()  # Ray has installed handlers of its own
            try:
                self.run_nodes(todo)
            finally:
                with contextlib.suppress(OSError):  # claims end with their driver's lease
                    self.claims.release_all()
                POOL.close(WORKERS_END_S)
        if self.execution.state == "running":
            self.execution.state = "failed" if self.failed else "done"
        self.execution.ended, self.execution.left = now(), {}
        self.record.save()
        self.record.save_tree()
        if left := self.store.sweep():
            self.console.log(f"temporary files may be left ({len(left)} errors): {left[0]}")
        return not self.failed

    def reuse_finished(self, verdicts: Mapping[str, Verdict]) -> list[Verdict]:
        """Reuse the nodes whose results are in the store; returns the nodes to run."""
        for verdict in verdicts.values():
            if verdict.manifest is not None:
                self.reuse(verdict, verdict.manifest)
        todo = [v for v in verdicts.values() if not v.cached]
        for verdict in todo:
            self.record_state(verdict, "waiting")
        self.execution.sort_nodes(self.plan.verdicts)
        if verdicts:
            self.record.save_states()  # once for all: a study has hundreds of nodes
            self.wait_for_collection()
            cached = {i: v.folder for i, v in verdicts.items() if v.cached}
            self.patiently(lambda: check_present(self.store, cached))
        return todo

    def wait_for_collection(self) -> None:
        """Wait until no `ediffi gc` runs. What the run needs must be in its saved record."""
        logged = False
        while self.patiently(lambda: is_collecting(self.store)) and not self.stop.why:
            if not logged:
                self.console.log("waiting for the end of an `ediffi gc`")
                logged = True
            time.sleep(1)

    def reuse(self, verdict: Verdict, manifest: Mapping[str, Any]) -> None:
        """Take a node's result from the store instead of running it, without saving the record."""
        self.manifests[verdict.node.id] = dict(manifest)
        self.record_state(verdict, "reused", seconds=manifest["seconds"])
        self.lineage.reused(verdict, self.manifests[verdict.node.id])

    def grow_after(self, node: Node, waiting: dict[str, Verdict]) -> None:
        """Grow trees by the result of a finished node, and add their new nodes to ``waiting``."""
        if self.plan.is_growing and node.kind in ("train", "difficulty"):
            waiting |= {v.node.id: v for v in self.regrow()}

    def regrow(self) -> list[Verdict]:
        """Grow the plan from what the store holds now; returns the new nodes to run."""
        before = self.plan
        self.plan = self.lineage.plan = self.patiently(before.regrow)
        new = {i: v for i, v in self.plan.verdicts.items() if i not in before.verdicts}
        for line in self.plan.new_decisions(before):
            self.console.log(line)
        self.path_lengths, self.dependents = path_lengths(self.plan), dependents(self.plan)
        return self.reuse_finished(new)

    def run_nodes(self, todo: list[Verdict]) -> None:
        """The main loop: start nodes as they become ready, until all are done or skipped."""
        import ray

        self.board = ray.remote(num_cpus=0, max_restarts=-1)(ProgressBoard).remote()
        self.outlook = Outlook(self.store, self.plan, self.execution, self.claims.lease)
        self.run_until_done({}, {v.node.id: v for v in todo})

    def run_until_done(
        self, running: dict[Future[dict[str, Any]], Verdict], waiting: dict[str, Verdict]
    ) -> None:
        """Run until nothing is left or the run is to stop; trainings save if the driver fails."""
        try:
            while (waiting or running) and not self.stop.why:
                self.run_some(running, waiting)
        except Exception as error:
            if not (self.stop.why and isinstance(error, OSError)):
                self.save_trainings(running, f"the driver fails: {one_line(error)}")
                raise
        if self.stop.why:
            self.shut_down(running, waiting)

    def run_some(
        self, running: dict[Future[dict[str, Any]], Verdict], waiting: dict[str, Verdict]
    ) -> None:
        """Start what is ready, wait half a second, and handle what has ended."""
        for verdict in self.ready(waiting, running.values()):
            if self.claim(verdict, waiting):
                del waiting[verdict.node.id]
                self.set_state(verdict, "running")
                self.lineage.started(verdict)
                running[in_thread(self.run_node, verdict)] = verdict
        self.record.save_tree_if_due()
        if not running:
            time.sleep(0.5)
        done, _ = wait(running, timeout=0.5, return_when="FIRST_COMPLETED")
        self.receive_reports()
        for future in done:
            self.finish(running.pop(future), future, waiting)
        self.enforce_time_limits(running.values())
        if self.outlook:
            self.outlook.refresh(self.plan)
        self.console.refresh(status.summary(self.execution))

    def claim(self, verdict: Verdict, waiting: dict[str, Verdict]) -> bool:
        """Claim a node for this driver.

        A node that another pipeline has built is reused and removed from ``waiting``; one that
        another pipeline is building stays there.

        Returns:
            Whether this driver is to run the node.
        """
        node = verdict.node
        if other := self.patiently(lambda: self.claims.acquire(verdict.folder)):
            pipeline, holder = other
            if "for" not in self.execution.nodes[node.id]:
                self.console.log(
                    f"{node.id} is being built by pipeline {pipeline} ({holder}); waiting for it"
                )
                self.set_state(verdict, "waiting", **{"for": pipeline})
            return False
        manifest = self.patiently(lambda: finished_elsewhere(self.store, verdict))
        if manifest is None:
            return True
        self.patiently(lambda: self.claims.release(verdict.folder))
        del waiting[node.id]
        self.console.log(f"{node.id} reused: another pipeline has built it in the meantime")
        self.reuse(verdict, manifest)
        self.record.save_states()
        self.grow_after(node, waiting)
        return False

    def enforce_time_limits(self, running: Iterable[Verdict]) -> None:
        """Ask training nodes that exceed their `max_hours:` to save and exit."""
        for node in (v.node for v in running):
            hours = node.runtime.get("limit_hours")
            if hours and self.progress.worked_s(node.id) > hours * 3600:
                self.board.stop.remote(
                    f"it exceeded its `max_hours:` of {hours:g} h; its last checkpoint is kept, "
                    "and the next run continues from it",
                    node.id,
                )

    def shut_down(
        self, running: dict[Future[dict[str, Any]], Verdict], waiting: dict[str, Verdict]
    ) -> None:
        """Give training nodes time to save and exit; other running nodes are abandoned."""
        self.execution.state = "cancelled" if self.stop.cancelled else "interrupted"
        self.save_trainings(running, self.stop.why or "")
        for future, verdict in running.items():
            if future.done() and not isinstance(future.exception(), Preempted):
                self.finish(verdict, future, waiting)
            else:
                self.set_state(verdict, self.execution.state)

    def save_trainings(
        self, running: Mapping[Future[dict[str, Any]], Verdict], reason: str
    ) -> None:
        """Ask training nodes to save and exit, and wait for that :attr:`grace_s` at most."""
        saving = {f for f, verdict in running.items() if verdict.node.kind == "train"}
        deadline = time.monotonic() + self.grace_s
        nodes = "1 training node" if len(saving) == 1 else f"{len(saving)} training nodes"
        waits = f"waiting up to {self.grace_s:.0f} s for {nodes} to save and exit"
        self.console.log(f"{reason}; {waits}" if saving else reason)
        while saving and time.monotonic() < deadline:
            self.board.stop.remote(reason)  # each time, as a restarted board has lost it
            saving = wait(saving, timeout=0.5).not_done
            self.receive_reports()
            self.console.refresh(status.summary(self.execution))
        if saving:
            late = ", ".join(sorted(running[future].node.id for future in saving))
            self.console.log(
                f"not saved in time: {late}; the next run continues from their last checkpoints. "
                "`grace_s:` in the spec gives them longer"
            )

    @property
    def grace_s(self) -> float:
        """Seconds that training nodes may take to save when the run is stopped."""
        asked = self.plan.spec.grace_s
        return asked if self.stop.signal else max(asked, CANCEL_GRACE_S)

    def ready(self, waiting: Mapping[str, Verdict], running: Iterable[Verdict]) -> list[Verdict]:
        """The nodes to start now: their dependencies are done, and they fit."""
        candidates = [
            Candidate(
                id=i,
                resources=v.node.resources,
                priority=v.node.priority,
                path_length=self.path_lengths[i],
            )
            for i, v in waiting.items()
            if all(n in self.manifests for n in v.node.dependencies)
            and self.claims.is_due(v.folder)
        ]
        free: Resources = self.total
        for verdict in running:
            free = subtract(free, verdict.node.resources)
        return [waiting[c.id] for c in startable(candidates, free)]

    def finish(
        self, verdict: Verdict, future: Future[dict[str, Any]], waiting: dict[str, Verdict]
    ) -> None:
        """Record how a node ended; skip all nodes that need it if it failed.

        Raises:
            LeaseLost: Another driver has taken over the pipeline.
        """
        node = verdict.node
        error = future.exception()
        if error is None:
            manifest = self.manifests[node.id] = future.result()
            self.patiently(lambda: self.claims.release(verdict.folder))
            self.set_state(verdict, "done", seconds=manifest["seconds"])
            self.lineage.finished(verdict, manifest)
            if self.outlook:
                self.outlook.finished(verdict, manifest)
            self.console.done(node.id, manifest)
            self.grow_after(node, waiting)
            return
        if isinstance(error, LeaseLost):
            raise error
        if lost := self.lost_claim(verdict, error):
            self.console.log(f"{node.id}: {lost}; waiting for its result")
            waiting[node.id] = verdict
            self.set_state(verdict, "waiting")
            return
        self.patiently(lambda: self.claims.release(verdict.folder))
        self.failed[node.id] = error
        if self.outlook:
            self.outlook.failed(verdict)
        self.set_state(verdict, "failed", error=one_line(error))
        trace = f"executions/{self.execution.id}/{node.id}.txt"
        text = "".join(traceback.format_exception(error)).encode()
        self.patiently(lambda: self.record.store.write(trace, text))
        self.lineage.failed(verdict, str(error))
        self.console.failed(node.id, one_line(error))
        if not isinstance(error, ValueError):
            self.console.log(f"{node.id}: the traceback is in {self.store.full(trace)}")
        skipped = [i for i in self.descendants(node.id) if i in waiting]
        for other in skipped:
            self.record_state(waiting.pop(other), "skipped", error=f"{node.id} failed")
            self.console.log(f"{other} skipped: it needs {node.id}, which failed")
        if skipped:
            self.record.save_states()

    def lost_claim(self, verdict: Verdict, error: BaseException) -> ClaimLost | None:
        """The error of a node that failed because another driver has taken it over; else None."""
        if isinstance(error, ClaimLost):
            return error
        try:
            return self.patiently(lambda: self.claims.check(verdict.folder))
        except ClaimLost as lost:
            return lost

    def run_node(self, verdict: Verdict) -> dict[str, Any]:
        """Run a node and commit its result; called in a thread of its own.

        Returns:
            The node's manifest.

        Raises:
            LeaseLost: Another driver has taken over the pipeline.
            ClaimLost: Another driver has taken over the node.
        """
        node, start = verdict.node, time.monotonic()
        ctx = Context(
            node=node.id,
            fingerprint=verdict.fingerprint,
            store=self.claims.fenced(verdict.folder),
            folder=verdict.folder,
            cpus=node.cpus,
            runtime=dict(node.runtime),
            board=self.board,
            manifests={role: self.manifests[i] for role, i in node.inputs.items()}
            | self.patiently(lambda: external_manifests(self.store, node)),
        )
        reads = {**node.inputs, **node.unhashed_inputs}
        inputs = {role: self.plan.verdicts[i].folder for role, i in reads.items()}
        inputs |= {role: external.folder for role, external in node.external.items()}
        with POOL.room_for(Shape.of(ctx)):
            if node.kind == "train":  # retries by itself, and goes on while the store is away
                result = run_step(node, ctx, inputs)
            else:  # finds what it has finished
                result = self.patiently(lambda: run_step(node, ctx, inputs))
        seconds = time.monotonic() - start
        return self.commit(verdict, result, seconds)

    def commit(self, verdict: Verdict, result: Result, seconds: float) -> dict[str, Any]:
        """Commit a node's result, if this driver has not lost its lease or its claim."""
        finished = now()  # a commit that is repeated writes the same manifest

        def once() -> dict[str, Any]:
            self.claims.lease.check()
            self.claims.check(verdict.folder)  # before all files are read; checked again after
            declare = self.claims.commit
            return commit(self.store, verdict, result, self.manifests, seconds, declare, finished)

        return self.patiently(once)

    def receive_reports(self) -> None:
        """Handle the progress reports that have arrived on the board."""
        import ray

        try:
            rows = ray.get(self.board.drain.remote())
        except ray.exceptions.RayActorError:
            return  # it was killed: Ray restarts it, and only a few reports are lost
        for node, row in rows:
            self.progress.handle(node, row)
        if rows and time.monotonic() - self.record.saved_at > SAVE_EVERY_S:
            with contextlib.suppress(OSError):  # an unreachable store does not stop training
                self.record.save_once()
        self.progress.report_machine()

    def set_state(self, verdict: Verdict, state: str, **more: Any) -> None:
        """Set a node's state, and save the run's record.

        Args:
            state, more: as of :meth:`record_state`.

        Raises:
            LeaseLost: Another driver has taken over the pipeline.
        """
        self.record_state(verdict, state, **more)
        self.record.save_states()

    def record_state(self, verdict: Verdict, state: str, **more: Any) -> None:
        """Set a node's state in the run's record, without saving it.

        Args:
            state, more: as of :meth:`RunRecord.set_state`.
        """
        self.console.state(verdict.node.id, state)
        self.record.set_state(verdict, state, **more)
        if state == "running":
            self.progress.restart(verdict.node.id)

    def tree(self) -> dict[str, Any]:
        """What `ediffi tree` shows, which is read from the store and not from MLflow."""
        return tree_view.build(self.plan, self.execution, self.manifests)

    def descendants(self, node: str) -> list[str]:
        """Ids of all nodes that need a node, directly or not; in the order of the plan."""
        found, level = set[str](), {node}
        while level:
            level = {i for one in level for i in self.dependents.get(one, ())} - found
            found |= level
        return [i for i in self.plan.verdicts if i in found] if found else []


def one_line(error: BaseException) -> str:
    """An error's message in one line; of a long report of Ray's, its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ValueError):
        return printable(" ".join(lines))
    return printable(lines[-1]) if lines else type(error).__name__
