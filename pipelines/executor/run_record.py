"""Keeps the record of a run, and its tree, in the store."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from pipelines.dag.plan import Verdict
from pipelines.executor.patience import Patience
from pipelines.runs.execution import Execution, now
from pipelines.runs.lease import Lease

TREE_SHARE_OF_TIME = 0.05
"""The tree of very many experts is saved less often, to take no more time than this."""

HOST = socket.gethostname()


class RunRecord:
    """Writes a run's record while this driver has the lease, and waits for a store that is away.

    What saves raises :class:`LeaseLost` once another driver has taken over the pipeline.
    """

    def __init__(
        self,
        execution: Execution,
        lease: Lease,
        patiently: Patience,
        tree: Callable[[], dict[str, Any]],
    ) -> None:
        """
        Args:
            tree: makes what `ediffi tree` shows.
        """
        self.execution, self.lease, self.patiently, self.tree = execution, lease, patiently, tree
        self.store = lease.fenced("executions")
        self.saved_at = self.tree_due_at = 0.0
        self.is_tree_saved = False

    def set_state(self, verdict: Verdict, state: str, **more: Any) -> None:
        """Set a node's state; :meth:`save_states` saves it.

        Args:
            state: ``waiting``, ``running``, ``done``, ``reused``, ``failed``, ``skipped``,
                ``interrupted`` or ``cancelled``.
            more: further facts to record, such as ``error``.
        """
        node = verdict.node.id
        before = self.execution.nodes.get(node, {})
        ours = before.get("folder") == verdict.folder and "seconds" in before
        origin = {"since": now(), "attempt": self.execution.attempt, "by": HOST}
        if state == "reused" and ours:  # an earlier attempt of this run has built it
            origin = {k: before[k] for k in origin if k in before}
        reads = sorted({external.folder for external in verdict.node.external.values()})
        self.execution.nodes[node] = {
            "state": state,
            "why": verdict.why,
            "folder": verdict.folder,
            **({"reads": reads} if reads else {}),
            **origin,
            **more,
        }
        self.execution.touch(node)

    def save_states(self) -> None:
        """Save the record, and the tree as soon as that is due."""
        self.save()
        self.is_tree_saved = False
        self.save_tree_if_due()

    def save(self) -> None:
        """Save the record."""
        self.patiently(self.save_once)

    def save_once(self) -> None:
        """Like :meth:`save`, without waiting for a store that is away."""
        self.saved_at = time.monotonic()
        self.lease.check_if_overdue()
        self.execution.save(self.store)

    def save_tree_if_due(self) -> None:
        """Save the tree if it has changed: that of very many experts less often."""
        if not self.is_tree_saved and time.monotonic() >= self.tree_due_at:
            self.save_tree()

    def save_tree(self) -> None:
        """Save the tree."""

        def save() -> None:
            began = time.monotonic()
            self.store.write_json(f"executions/{self.execution.id}.tree.json", self.tree())
            ended = time.monotonic()
            self.tree_due_at = ended + (ended - began) / TREE_SHARE_OF_TIME
            self.is_tree_saved = True

        self.patiently(save)
