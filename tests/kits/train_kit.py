"""One training node on Ray that logs what every step saw.

As a program, to be watched and killed::

    python train_kit.py SPEC --storage STORE
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import yaml

NODE = "train/base/E0_0"
PROGRAM = (sys.executable, Path(__file__))


def write_spec(to, workers=1, images=640, checkpoint_images=64, **more):
    """The smoke spec's root alone, trained by ``workers`` workers of one CPU each."""
    from kit import SMOKE

    raw = yaml.safe_load(SMOKE.read_text())
    base = raw["stages"]["base"]
    base |= {"experts": {"E0_0": {"images": images}}, "ensemble": ["E0_0"]}
    base["workers"] = {"count": workers, "timeout_s": 120, **more}
    base["workers"]["retries"] = {"backoff_s": 0.1}
    base["cadence"] = {
        "checkpoint_images": checkpoint_images,
        "log_images": 64,
        "validate_images": images,
        "validate_draws": 32,
    }
    del base["single"]
    to.write_text(yaml.safe_dump(raw))
    return to


def verdict_of(spec, root):
    from pipelines.dag import plan
    from pipelines.spec.loading import load
    from pipelines.store.artifacts import Store

    made = plan.make(load(spec), Store.open(str(root)), {})
    return made, made.verdicts[NODE]


def context_of(made, verdict, root, folder, **more):
    """Context, settings and inputs of a planned node, as a run gives them to its step.

    Args:
        folder: of the result, in the store at ``root``.
        more: of the context, in place of the node's own.
    """
    from pipelines.runs.context import Context
    from pipelines.store.artifacts import Store

    node = verdict.node
    own = {"node": node.id, "cpus": 1, "runtime": dict(node.runtime), "board": None}
    ctx = Context(
        fingerprint=verdict.fingerprint,
        store=Store.open(str(root)),
        folder=folder,
        manifests={role: made.verdicts[i].manifest for role, i in node.inputs.items()},
        **{**own, **more},
    )
    reads = {**node.inputs, **node.unhashed_inputs}
    inputs = {role: made.verdicts[i].folder for role, i in reads.items()}
    return ctx, dict(node.settings), inputs


def worker(config):
    """Train, and write each step's images and losses into ``steps/`` of the store."""
    from pipelines.training.build import TrainingSetup
    from pipelines.training.loop import Trainer

    began = time.time()
    setup = TrainingSetup(config["ctx"], config["settings"], config["inputs"])
    log = Path(setup.ctx.store.root) / "steps"
    log.mkdir(exist_ok=True)
    size, rank = setup.comm.size, setup.comm.rank
    file = (log / f"{began:.3f}-{rank}-of-{size}.jsonl").open("w", buffering=1)
    step = setup.step

    def logged(index, x, cond, learning_rate):
        outcome = step(index, x, cond, learning_rate)
        row = {
            "at": time.time(),
            "images": index.tolist(),
            "pictures": x.double().sum(dim=(1, 2, 3)).tolist(),
            "sigma": outcome.sigma.tolist(),
            "loss": outcome.loss.tolist(),
        }
        file.write(json.dumps(row) + "\n")
        return outcome

    setup.step = logged
    return Trainer(setup).train()


def steps(root):
    """Image → pictures, σ and loss of the last step that had it, over all attempts and ranks."""
    found = {}
    for file in sorted((Path(root) / "steps").iterdir(), key=lambda f: float(f.name.split("-")[0])):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            for i, image in enumerate(row["images"]):
                found[image] = {k: row[k][i] for k in ("pictures", "sigma", "loss")}
    return found


def main(spec, root):
    import ray
    from lone_kit import LoneRunner

    from pipelines.executor.ray_cluster import start_ray
    from pipelines.runs.context import ProgressBoard
    from pipelines.steps import train
    from pipelines.store.artifacts import Store

    made, verdict = verdict_of(spec, root)
    if verdict.cached:
        print("is done", flush=True)
        return
    start_ray(made.spec.cpus)
    runner = LoneRunner(made, Store.open(str(root)))
    runner.manifests = {v.node.id: v.manifest for v in made.verdicts.values() if v.cached}
    runner.board = ray.remote(num_cpus=0, max_restarts=-1)(ProgressBoard).remote()
    whole = train.train
    train.train = lambda ctx, _, config: whole(ctx, train_kit.worker, config)

    def print_reports():
        while True:
            time.sleep(0.2)
            try:
                rows = ray.get(runner.board.drain.remote())
            except ray.exceptions.RayError:
                continue
            for _, row in rows:
                for key in ("message", "checkpoint"):
                    if key in row:
                        print(key, row[key], flush=True)

    threading.Thread(target=print_reports, daemon=True).start()
    runner.run_node(verdict)
    runner.store.sweep()  # as every run ends
    print("is done", flush=True)


if __name__ == "__main__":
    import train_kit

    main(Path(sys.argv[1]), Path(sys.argv[3]))
