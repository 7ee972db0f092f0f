"""A Ray cluster on this machine whose autoscaler starts and ends labelled worker nodes."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from ceph import free_port
from kit import EDIFFI, PATIENCE_S, descendants, environment, is_alive, kill, title

HEAD, HEAD_ID = "ray.head.default", "f" * 51 + "00000"
COMMANDS = (
    "initialization",
    "setup",
    "head_setup",
    "worker_setup",
    "head_start_ray",
    "worker_start_ray",
)
IDLE_S = 20.0
"""How long a node has nothing to do before it is ended."""


class Autoscaled:
    """The running cluster. Its head node runs tasks; each group has at most one other node."""

    def __init__(self, address: str, pid: int) -> None:
        self.address, self.pid, self.seen = address, pid, set[int]()

    def groups(self) -> dict[str, str]:
        """Nodes beside the head now: id → label ``group``."""
        from ray._raylet import GcsClient
        from ray.core.generated.gcs_pb2 import GcsNodeInfo

        nodes = GcsClient(address=self.address).get_all_node_info(timeout=30).values()
        return {
            node.node_id.hex(): node.labels["group"]
            for node in nodes
            if node.state == GcsNodeInfo.ALIVE and "group" in node.labels
        }

    def kill_node(self, node_id: str) -> None:
        """SIGKILL a node and what runs on it, as when its machine fails."""
        raylets = [
            pid
            for pid in descendants(self.pid)
            if "raylet/raylet" in title(pid) and node_id in title(pid)
        ]
        [raylet] = raylets
        kill(raylet, *descendants(raylet))


@contextlib.contextmanager
def running(folder: Path, groups: dict[str, int]) -> Iterator[Autoscaled]:
    """Start the cluster with no node but its head.

    Args:
        folder: for its configuration and log.
        groups: CPUs of a node of each group.
    """
    import ray
    from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    memory = {"object_store_memory": 200 * 2**20}
    configuration = {
        "cluster_name": "tests",
        "max_workers": len(groups),
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            # Its type, `fake_multinode`, needs a file that Ray's wheels leave out.
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "head_node_type": HEAD,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{kind}_commands": [] for kind in COMMANDS},
        "available_node_types": {
            HEAD: {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
            **{
                name: {
                    "resources": {"CPU": cpus, **memory},
                    "labels": {"group": name},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": 1,
                }
                for name, cpus in groups.items()
            },
        },
    }
    file = folder / "autoscaler.yaml"
    file.write_text(yaml.safe_dump(configuration))
    start = (str(EDIFFI.with_name("ray")), "start", "--head", "--block", f"--port={port}",
             "--num-cpus=4", "--include-dashboard=false",
             f"--object-store-memory={256 * 2**20}",
             f"--autoscaling-config={file}")  # fmt: skip
    variables = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1",
    }
    with (folder / "ray.log").open("w") as log:
        process = subprocess.Popen(
            start, stdout=log, stderr=log, env=environment(**variables), start_new_session=True
        )
    cluster = Autoscaled(address, process.pid)
    try:
        begun = time.monotonic()
        while "Ray runtime started" not in (folder / "ray.log").read_text():
            assert process.poll() is None, (folder / "ray.log").read_text()
            assert time.monotonic() - begun < PATIENCE_S, (folder / "ray.log").read_text()
            time.sleep(0.5)
        yield cluster
    finally:
        below = descendants(process.pid)
        kill(process.pid, *below)
        process.wait()
        kill(*(pid for pid in below if is_alive(pid)))
