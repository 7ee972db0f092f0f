"""A training node on Ray against the same step in a plain script; and what its duties cost.

Its own data, smoke's, are made first. Images a second are those between the first and the last step
of a training, each in a process of its own with one thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import report

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/kits")]

from train_kit import NODE, context_of, verdict_of, write_spec  # noqa: E402

ROUNDS, IMAGES, WARM = 3, 1600, 320


def prepared(folder: Path) -> tuple[Path, Path]:
    """→ a spec of one expert with the demo's network, and a store in which its data are ready."""
    from lone_kit import LoneRunner

    from pipelines.executor.ray_cluster import start_ray
    from pipelines.store.artifacts import Store

    spec = write_spec(folder / "bench.yaml", images=IMAGES, checkpoint_images=10**9)
    text = spec.read_text().replace("preset: smoke", "preset: demo")
    spec.write_text(text.replace("log_images: 64", "log_images: 320"))
    store = folder / "store"
    for node in (
        "data/train",
        "data/validation",
        "encoders/tiny",
        "embed/train",
        "embed/validation",
    ):
        made, _ = verdict_of(spec, store)
        runner = LoneRunner(made, Store.open(str(store)))
        runner.manifests = {v.node.id: dict(v.manifest) for v in made.verdicts.values() if v.cached}
        if node == "data/train":
            start_ray(made.spec.cpus)
        runner.run_node(made.verdicts[node])
    import ray

    ray.shutdown()
    return spec, store


# -- one training, in the process that is asked ----------------------------------------------------


def context(spec: Path, store: Path, way: str, board: Any = None, **runtime: Any) -> Any:
    """The training setup of the node, in a new folder."""
    from pipelines.training.build import TrainingSetup

    made, verdict = verdict_of(spec, store)
    folder, runtime = f"bench/{way}-{time.time_ns()}", {**verdict.node.runtime, **runtime}
    given = context_of(made, verdict, store, folder, runtime=runtime, board=board)
    return TrainingSetup(*given)


def timed(setup: Any) -> dict[str, float]:
    """The loop itself, from after a few steps to the last; what follows the end is left out."""
    from pipelines.training.loop import Trainer

    moments: dict[int, float] = {}
    step = setup.step

    def clocked(index: Any, *rest: Any) -> Any:
        moments[int(index[0])] = time.monotonic()
        return step(index, *rest)

    setup.step = clocked
    trainer = Trainer(setup)
    trainer.run_steps()
    trainer.checkpoints.wait()
    last = max(moments)
    waits = [r["metrics"]["data_wait"] for r in trainer.history if "data_wait" in r["metrics"]]
    return {
        "images_per_s": (last - WARM) / (moments[last] - moments[WARM]),
        "first": min(moments.values()),
        "data_wait": median(waits),
    }


def plain(spec: Path, store: Path) -> dict[str, float]:
    """The same step without Ray, records or a stream: batches are read before the clock starts."""
    setup = context(spec, store, "plain")
    batch, rate = setup.options["batch"], setup.options["learning_rate"]
    indices = [torch.arange(p, p + batch) for p in range(0, IMAGES, batch)]
    batches = [setup.data.batch(index) for index in indices]
    model, state, draws = setup.model, setup.state, setup.step.draws
    from ediffi_core.precond import denoising_loss

    for index, (x, cond) in zip(indices, batches):
        if int(index[0]) == WARM:
            began = time.monotonic()
        sigma, eps = draws.sigma(index), draws.eps(index, x.shape[1:])
        loss = denoising_loss(model, model.sigma_data, x, sigma, eps, draws.kept(index, cond))
        state.optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.options["clip_norm"])
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.ema.update(model, int(index[-1]) + 1, batch)
    return {"images_per_s": (IMAGES - WARM) / (time.monotonic() - began)}


def on_ray(config: dict[str, Any]) -> dict[str, float]:
    """What Ray Train's worker does here: the loop, and when its first step was."""
    return timed(context(Path(config["spec"]), Path(config["store"]), "ray", config["board"]))


def through_ray(spec: Path, store: Path, rounds: int) -> list[dict[str, float]]:
    """Trainings one after another in one cluster, as a pipeline's nodes are."""
    import bench_node
    import ray

    from pipelines.executor.ray_cluster import start_ray
    from pipelines.runs.context import Context, ProgressBoard
    from pipelines.steps.train import train
    from pipelines.store.artifacts import Store

    start_ray(2)
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    _, verdict = verdict_of(spec, store)
    ctx = Context(
        node=NODE,
        fingerprint="bench",
        store=Store.open(str(store)),
        folder="bench/driver",
        cpus=1,
        runtime=dict(verdict.node.runtime),
        board=board,
        manifests={},
    )
    found = []
    for _ in range(rounds):
        ready = time.monotonic()
        config = {"spec": str(spec), "store": str(store), "board": board}
        outcome = train(ctx, bench_node.on_ray, config)
        found.append({**outcome, "fixed_s": outcome["first"] - ready})
    ray.shutdown()
    return found


def alone(way: str, spec: Path, store: Path) -> Any:
    """Runs one of the ways in a process of its own; → what it found."""
    done = subprocess.run(
        [sys.executable, __file__, way, str(spec), str(store)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        spec, store = prepared(Path(folder))
        rounds = [
            {way: alone(way, spec, store) for way in ("plain", "ray", "quiet", "saving", "told")}
            for _ in range(ROUNDS)
        ]
    speed = {w: median(_flat(r[w])["images_per_s"] for r in rounds) for w in rounds[0]}
    fixed = median(x["fixed_s"] for r in rounds for x in r["ray"])
    saves, rows_told = IMAGES // 320 - 1, IMAGES // 16
    per_save_s = (1 / speed["saving"] - 1 / speed["quiet"]) * IMAGES / saves
    per_row_s = (1 / speed["told"] - 1 / speed["quiet"]) * IMAGES / rows_told
    report(
        "A training node",
        [
            f"The demo's base, batch 16, {IMAGES:,} images, one thread a process, medians of "
            f"{ROUNDS} rounds.",
            "",
            "| | images/s | beside a plain script |",
            "|---|---|---|",
            f"| a plain script, its batches in memory | {speed['plain']:.1f} | 1.000 |",
            f"| our loop on Ray Train | {speed['ray']:.1f} | {speed['ray'] / speed['plain']:.3f} |",
            f"| our loop without Ray | {speed['quiet']:.1f} | "
            f"{speed['quiet'] / speed['plain']:.3f} |",
            "",
            f"A checkpoint costs {max(0, per_save_s) * 1e3:.0f} ms of training, written beside it: "
            f"{max(0, per_save_s) / 30:.2%} at one every 30 s. A row of metrics costs "
            f"{max(0, per_row_s) * 1e3:.1f} ms: {max(0, per_row_s) / 10:.2%} at one every 10 s. "
            f"Training waits for data "
            f"{median(_flat(r['ray'])['data_wait'] for r in rounds):.2%} of the time. From ready "
            f"to the first step a node takes {fixed:.1f} s.",
        ],
    )


def _flat(found: Any) -> dict[str, float]:
    """Of several trainings in one cluster the last, whose processes found all in memory."""
    return found[-1] if isinstance(found, list) else found


if __name__ == "__main__":
    if len(sys.argv) < 4:
        main()
    else:
        way, spec, store = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
        if way == "plain":
            found: Any = plain(spec, store)
        elif way == "ray":
            found = through_ray(spec, store, rounds=2)
        elif way == "saving":
            found = timed(context(spec, store, "saving", checkpoint_images=320))
        elif way == "told":
            found = timed(context(spec, store, "told", log_images=16))
        else:
            found = timed(context(spec, store, "quiet"))
        print(json.dumps(found))
