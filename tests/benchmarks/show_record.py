"""Screenshots of MLflow's pages for the demo, for infra/docs/record.md.

Needs a finished demo (``make demo``), in the store ``EDIFFI_STORE``, and Chromium. The record is
copied first: MLflow's server may change a database that it opens.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
MODEL = "emoji-scenes"
SIZE = {"width": 2200, "height": 760}
CLOSES_ASSISTANT = (2164, 36)
REST_MS = 15_000
"""A page asks for its parts one after another, and has no mark that says that all are there."""

PLACES = (
    ("registered_models", "description"),
    ("model_versions", "description"),
    ("datasets", "dataset_source"),
)
"""Columns of MLflow's database that name the store."""

KIND = "workflowType=machine_learning"


@contextmanager
def server(database: Path) -> Iterator[str]:
    """Address of an MLflow server that shows a database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    running = subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{database}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health").read()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        running.terminate()
        running.wait()


def pages(client: MlflowClient) -> dict[str, str]:
    """File → the end of a page's address."""
    experiment = client.get_experiment_by_name(MODEL).experiment_id
    at = f"#/experiments/{experiment}"
    version = client.get_model_version_by_alias(MODEL, "champion")
    runs = client.search_runs([experiment], "tags.`ediffi.kind` = 'evaluate'", max_results=50)
    pair = [run.info.run_id for run in runs if "evaluate/base/" in run.info.run_name][:2]
    ids = "[" + ",".join(f"%22{run}%22" for run in pair) + "]"
    return {
        "mlflow-runs": f"{at}/runs?{KIND}&viewStateShareKey=experts",
        "mlflow-version": f"#/models/{MODEL}/versions/{version.version}?{KIND}",
        "mlflow-compare": f"#/compare-runs?runs={ids}&experiments=[%22{experiment}%22]&{KIND}",
        "mlflow-data": f"{at}/runs?{KIND}&viewStateShareKey=overview",
    }


def shoot(page: Page, address: str, name: str) -> None:
    """Save a page once it has come to rest, of 256 colours."""
    page.goto(address)
    page.wait_for_timeout(REST_MS)
    if page.get_by_text("MLflow Assistant").first.is_visible():
        page.mouse.click(*CLOSES_ASSISTANT)
    if name == "mlflow-data":
        page.get_by_text(re.compile(r"^train \(")).first.click()
    if name == "mlflow-compare":
        page.get_by_text("Parameters", exact=True).last.scroll_into_view_if_needed()
    page.wait_for_timeout(REST_MS // 5)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256).save(ROOT / ".github" / f"{name}.png", optimize=True)


def without_places(database: Path, store: Path) -> None:
    """Leave out where the store is on this machine."""
    with sqlite3.connect(database) as open_:
        for table, column in PLACES:
            open_.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, '')",
                (f"{store.absolute().parent}/",),
            )


def main() -> None:
    store = Path(os.environ.get("EDIFFI_STORE", ROOT / "ediffi-store"))
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        database = Path(shutil.copy(store / "mlflow.db", scratch))
        without_places(database, store)
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        with server(database) as address:
            page = browser.new_page(viewport=SIZE)
            for name, end in pages(MlflowClient(address)).items():
                shoot(page, f"{address}/{end}", name)
        browser.close()


if __name__ == "__main__":
    main()
