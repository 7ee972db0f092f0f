"""Ceph on this machine: one monitor, one disk, and its S3 server (RADOS Gateway)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

from s3 import KEY, SECRET

PROGRAMS = {  # what each is started with
    "ceph-mon": ("-i", "a"),
    "ceph-mgr": ("-i", "a"),
    "ceph-osd": ("-i", "0"),
    "radosgw": ("-n", "client.gateway"),
}
TOOLS = ("ceph", "ceph-authtool", "monmaptool", "radosgw-admin")
STARTS_WITHIN_S = 180.0
USER = "ediffi"


def missing() -> list[str]:
    """Its programs that are not installed (Debian: ceph-mon ceph-mgr ceph-osd radosgw)."""
    return [name for name in (*PROGRAMS, *TOOLS) if shutil.which(name) is None]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Ceph:
    """A cluster in a folder, which :meth:`stop` ends.

    Args:
        folder: empty; its path must be short, as Unix sockets are made in it.
        disk_bytes: size of the one disk.
    """

    def __init__(self, folder: Path, disk_bytes: int = 4 * 2**30) -> None:
        self.folder, self.port = folder, free_port()
        self.conf = folder / "ceph.conf"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        cluster, disk = uuid.uuid4(), str(uuid.uuid4())
        monitor = f"[v2:127.0.0.1:{free_port()}]"
        for name in ("mon", "mgr", "osd", "gateway"):
            (folder / name).mkdir(parents=True)
        self.conf.write_text(
            f"""[global]
fsid = {cluster}
mon_host = {monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {folder}/keyring
auth_allow_insecure_global_id_reclaim = false
run_dir = {folder}
admin_socket = {folder}/$name.$pid.asok
log_file = {folder}/$name.log
crash_dir = {folder}
mon_data = {folder}/mon
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mgr_data = {folder}/mgr
osd_data = {folder}/osd
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_memory_target = 939524096
bluestore_block_size = {disk_bytes}
rgw_data = {folder}/gateway
rgw_rados_pool_pg_num_min = 8
rgw_frontends = beast endpoint=127.0.0.1:{self.port}
"""
        )
        for name in ("mon.", "mgr.a", "osd.0", "client.admin", "client.gateway"):
            caps = [w for kind in ("mon", "mgr", "osd") for w in ("--cap", kind, "allow *")]
            self._run("ceph-authtool", str(folder / "keyring"), "--gen-key", "-n", name, *caps,
                      *([] if (folder / "keyring").exists() else ["--create-keyring"]))  # fmt: skip
        self._run("monmaptool", "--create", "--fsid", str(cluster), "--addv", "a", monitor,
                  str(folder / "monmap"), "--set-min-mon-release", "16")  # fmt: skip
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"),
                  "--keyring", str(folder / "keyring"))  # fmt: skip
        self.start("ceph-mon")
        self.start("ceph-mgr")
        self._run("ceph", "--connect-timeout", "60", "osd", "new", disk)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", disk)
        self.start("ceph-osd")
        self.start("radosgw")
        self.admin("user", "create", f"--uid={USER}", "--display-name=ediffi",
                   f"--access-key={KEY}", f"--secret-key={SECRET}")  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self, name: str) -> None:
        """Start one of its programs; ``radosgw`` answers when this returns."""
        with (self.folder / f"{name}.out").open("ab") as out:
            self._running[name] = subprocess.Popen(
                [name, "-c", str(self.conf), *PROGRAMS[name], "-f"], stdout=out, stderr=out
            )
        if name == "radosgw":
            self._wait_until_it_answers()

    def kill(self, name: str) -> None:
        """SIGKILL one of them, as when its machine fails."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def admin(self, *words: str) -> str:
        """Run ``radosgw-admin``; → its output."""
        return self._run("radosgw-admin", *words)

    def quota(self, max_bytes: int | None) -> None:
        """What all objects together may take; None: as much as the disk has."""
        scope = ("--quota-scope=user", f"--uid={USER}")
        if max_bytes is not None:
            self.admin("quota", "set", *scope, f"--max-size={max_bytes}B")
        self.admin("quota", "disable" if max_bytes is None else "enable", *scope)

    def full(self, full: bool) -> None:
        """Make the disk count as full, so that writes wait, or as having room; → when it does."""
        near, full_at = (0.01, 0.02) if full else (0.85, 0.95)
        order = ("nearfull", "backfillfull", "full")
        ratios = dict(zip(order, (near, near, full_at)))
        for name in order if full else reversed(order):
            self._run("ceph", "osd", f"set-{name}-ratio", str(ratios[name]))
        begun = time.monotonic()
        while ("OSD_FULL" in (said := self._run("ceph", "health", "detail"))) != full:
            assert time.monotonic() - begun < STARTS_WITHIN_S, said
            time.sleep(0.5)

    def stop(self) -> None:
        for name in list(self._running):
            self.kill(name)

    def _run(self, program: str, *words: str) -> str:
        conf = [] if program in ("ceph-authtool", "monmaptool") else ["-c", str(self.conf)]
        done = subprocess.run([program, *conf, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{program} {words}: {done.stdout}{done.stderr}"
        return done.stdout

    def _wait_until_it_answers(self) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < STARTS_WITHIN_S:
            assert self._running["radosgw"].poll() is None, (
                self.folder / "radosgw.out"
            ).read_text()
            with socket.socket() as there:
                there.settimeout(1.0)
                if there.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError(f"radosgw did not start within {STARTS_WITHIN_S:g} s")
