"""``ediffi``: thin verbs over spec, plan, run and model. Heavy imports wait until needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    help="Train ensembles of expert denoisers as a workflow DAG, and draw with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data", help="Looks at embedded data sets: numbers and pictures.")

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The pipeline's YAML.")]
Storage = Annotated[str | None, typer.Option(help="Folder or URL of the store; else the spec's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_STORAGE = "ediffi-store"
RECORD_WHEN_STOPPED_S = 5.0


def opened(spec_path: Path, storage: str | None) -> tuple[Any, Any, Any, Any]:
    """Spec, store, plan, and the sources it was made for."""
    from pipelines import plan, remote, sources, spec
    from pipelines.store.artifacts import Store

    loaded = spec.load(spec_path)
    remote.use(loaded.s3.variables())
    store = Store.at(storage or loaded.storage).greet()
    found = sources.identify_all(loaded)
    return loaded, store, plan.make(loaded, store, found), found


@app.command(name="plan", epilog="Example:  ediffi plan pipelines/specs/demo.yaml")
def show_plan(spec: SpecPath, storage: Storage = None, as_json: AsJson = False) -> None:
    """Says what a run would do, and why.

    Every node: what it waits for, its σ interval, the images to train, cached or why not; and of
    your own data what is still to embed, and what that will cost.
    """
    from pipelines import plan_view
    from pipelines.data import estimate

    _, store, made, sources = opened(spec, storage)
    work = estimate.ahead(made, store, sources)
    shown = json.dumps(plan_view.data(made, work), indent=1) if as_json else None
    typer.echo(shown or plan_view.text(made, work))


@app.command(epilog="Example:  ediffi run pipelines/specs/demo.yaml")
def run(spec: SpecPath, storage: Storage = None) -> None:
    """Runs a pipeline, or goes on where a kill stopped it."""
    from pipelines import tree_view
    from pipelines.console import Console
    from pipelines.lineage import Lineage
    from pipelines.remote import StorageError
    from pipelines.run import Runner, begin, only_driver, reason
    from pipelines.stopping import Stop
    from pipelines.store.artifacts import Store

    loaded, store, made, _ = opened(spec, storage)
    store = Store.open(store.root)
    with only_driver(store, loaded.name), Console() as console, Stop() as stop:
        execution = begin(made, store)
        execution.save(store)
        again = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
        console.say(f"{execution.id}{again}: {len(made.verdicts)} nodes in {store.root}")
        for verdict in made.verdicts.values():
            if verdict.cached:
                console.say(f"{verdict.node.id} reused: {verdict.why}")
        lineage = Lineage(made, store, execution, console.say)
        runner = Runner(made, store, execution, lineage, console, stop)
        good = runner.run()
        if stop.signal and execution.state == "interrupted":
            lineage.close(execution.state, runner.manifests, RECORD_WHEN_STOPPED_S)
            execution.save(store)
            console.say("interrupted; the same command goes on from here")
            raise SystemExit(128 + stop.signal)
        console.say("finishing the MLflow record")
        lineage.close(execution.state, runner.manifests)
        execution.save(store)
        here = " on this machine, as a bucket cannot hold it" if lineage.is_aside else ""
        console.say(f"{execution.state}; record: {lineage.uri}{here}")
    typer.echo("\n" + tree_view.text(tree_view.build(made, execution, runner.manifests)))
    if good and (promoted := made.verdicts.get(f"promote/{loaded.name}")):
        path = store.full(f"{promoted.folder}/ensemble.json")
        typer.echo(f"\nensemble: {os.path.relpath(path) if store.is_local else path}")
    if not good:
        mistakes = all(isinstance(e, ValueError | StorageError) for e in runner.failed.values())
        for node, error in runner.failed.items():
            typer.echo(f"ediffi: {node}: {reason(error)}", err=True)
        raise SystemExit(2 if mistakes else 1)


def planned_execution(
    spec: Path | None, storage: str | None, run_id: str | None
) -> tuple[Any, Any]:
    """The store, and the execution that was asked for (the last one by default)."""
    from pipelines import remote
    from pipelines import spec as specs
    from pipelines.run import by_id, latest
    from pipelines.store.artifacts import Store

    pipeline = None
    if spec is not None:
        loaded = specs.load(spec)
        remote.use(loaded.s3.variables())
        pipeline, storage = loaded.name, storage or loaded.storage
    store = Store.at(storage or DEFAULT_STORAGE).greet()
    found = by_id(store, run_id) if run_id else latest(store, pipeline)
    if found is None:
        what = f"no run {run_id}" if run_id else "no run"
        raise ValueError(
            f"{what} in {store.root}; start one with `ediffi run SPEC`, or give --storage"
        )
    return store, found


@app.command(epilog="Example:  ediffi status --json")
def status(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="Of which pipeline; else the last run.")
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Says how the last run stands, node by node."""
    from pipelines.run import is_driven

    store, execution = planned_execution(spec, storage, None)
    if execution.state == "running":
        driven = is_driven(store, execution.pipeline)
        if driven is None:
            execution.state = "running, or stopped: a bucket has no lock to tell by"
        elif not driven:
            execution.state = "stopped (its driver is gone; the same `ediffi run` continues it)"
    if execution.state == "interrupted":
        execution.state = "interrupted (the same `ediffi run` continues it)"
    if as_json:
        typer.echo(json.dumps(execution.__dict__, indent=1))
        return
    typer.echo(f"{execution.id}: {execution.state}")
    for node, record in execution.nodes.items():
        progress = ""
        if record["state"] == "running" and "done" in record:
            progress = f"  {record['done']:,} of {record['of']:,} {record['unit']}"
        why = f"  {record['error']}" if "error" in record else ""
        typer.echo(f"  {node:<24} {record['state']}{progress}{why}")


@app.command(epilog="Example:  ediffi tree")
def tree(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="An execution's id; else the last.")
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Draws the expert tree of a run.

    Intervals, budgets, gains over the parents, and how the ensemble measures up.
    """
    from pipelines import tree_view

    store, execution = planned_execution(None, storage, run)
    found = store.read_json(f"executions/{execution.id}.tree.json")
    if found is None:
        raise ValueError(f"run {execution.id} has no tree yet; it is {execution.state}")
    typer.echo(json.dumps(found, indent=1) if as_json else tree_view.text(found))


@app.command(
    epilog='\b\nExamples:\n  ediffi sample digit-scenes "a red seven left of a green two"\n'
    '  ediffi sample digit-scenes "a blue three and a red one" --paint "a blue three=0,0,0.4,1"\n'
    '  ediffi sample digit-scenes "a blue three" --style picture.png --seed 3'
)
def sample(
    model: Annotated[
        str, typer.Argument(help="ensemble.json, a pipeline's name, or models:/NAME@ALIAS.")
    ],
    prompts: Annotated[list[str], typer.Argument(help="One or several prompts.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write.")] = Path("out.png"),
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale; 0 is none.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the base.")] = None,
    solver: Annotated[
        str | None, typer.Option(help="Of the base: euler, heun, deis1 to deis3 or dpm++2m.")
    ] = None,
    style: Annotated[
        list[Path] | None, typer.Option(help="A picture whose style to take; several mix.")
    ] = None,
    paint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHRASE=WHERE",
            help="Where words of the prompt shall be: a black and white picture, or left,top,"
            "right,bottom as parts of the sides.",
        ),
    ] = None,
    strength: Annotated[float, typer.Option(min=0, help="Of what is painted.")] = 0.4,
    stage: Annotated[
        str | None, typer.Option(help="Draw up to this stage of the cascade; else to the last.")
    ] = None,
    residency: Annotated[
        Literal["all", "current", "disk"],
        typer.Option(
            help="Experts on the device: all, the current one, or that and the rest on disk."
        ),
    ] = "all",
    seed: int = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures a prompt.")] = 1,
    scale: Annotated[int, typer.Option(min=1, help="Enlarges the pictures in the PNG.")] = 4,
    storage: Storage = None,
) -> None:
    """Draws pictures for prompts with a trained ensemble."""
    import math

    writable(output)
    place = find_model(model, storage)
    from transformers.utils.logging import disable_progress_bar

    from pipelines import painting
    from pipelines.model import TextToImage, grid
    from pipelines.painting import picture

    disable_progress_bar()  # it would mix with an error's one line
    wanted = [p for p in prompts for _ in range(n)]
    pictures = TextToImage.load(place, residency).sample(
        wanted,
        guidance=guidance,
        steps=steps,
        solver=solver,
        seed=seed,
        style=[picture(p) for p in style or ()],
        paint=painting.parse(paint, wanted, strength) if paint else None,
        up_to=stage,
    )
    columns = n if n > 1 and len(prompts) > 1 else math.ceil(math.sqrt(len(wanted)))
    grid(pictures, columns=columns, scale=scale).save(output)
    typer.echo(f"{output}: {len(wanted)} picture{'s' * (len(wanted) > 1)}")


VersionName = Annotated[
    str, typer.Argument(metavar="[VERSION]", help="An embed node's name, or a folder of the store.")
]


@data_app.command(epilog="Example:  ediffi data stats train --faults 10")
def stats(
    version: VersionName = "train",
    faults: Annotated[int, typer.Option(min=0, help="List so many quarantined rows.")] = 0,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Says what an embedded data set holds, and what it left out."""
    from pipelines.data import stats as of
    from pipelines.store.artifacts import Store

    embedded = of.find(Store.at(storage or DEFAULT_STORAGE), version)
    found, listed = of.data(embedded), of.faults(embedded, faults) if faults else None
    if as_json:
        typer.echo(json.dumps(found | ({"faults": listed} if faults else {}), indent=1))
    else:
        typer.echo(of.text(found, listed))


@data_app.command(epilog="Example:  ediffi data show train -n 16 -o grid.png")
def show(
    version: VersionName = "train",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Pictures.")] = 16,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Of which stage; else the largest pictures.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write.")] = Path(
        "grid.png"
    ),
    storage: Storage = None,
) -> None:
    """Draws pictures of an embedded data set with their captions."""
    from pipelines.data import show as drawing
    from pipelines.data.stats import find
    from pipelines.store.artifacts import Store

    writable(output)
    found = find(Store.at(storage or DEFAULT_STORAGE), version).version
    side = resolution or max(found.header.resolutions)
    pairs = drawing.pairs(found, side, n)
    rows = int(found.usable(side).sum())
    title = f"{found.folder.rpartition('/')[2]}: {len(pairs):,} of {rows:,} pictures of side {side}"
    drawing.grid(pairs, title).save(output)
    typer.echo(f"{output}: {len(pairs)} picture{'s' * (len(pairs) > 1)}")
    if boxes := drawing.lacking(pairs):
        known = " or ".join(drawing.FAMILIES[1:3])
        typer.echo(
            f"{boxes} captions have letters that no font here has; install {known}", err=True
        )


def writable(output: Path) -> None:
    if not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output} cannot be written; give a place that can with --output")


def find_model(model: str, storage: str | None) -> Path:
    """The ensemble.json behind a path, a pipeline's name or a registry address."""
    from pipelines.run import latest
    from pipelines.store.artifacts import Store

    if model.endswith(".json"):
        return Path(model)
    store = Store.at(storage or DEFAULT_STORAGE).greet()
    if model.startswith("models:/"):
        from pipelines.lineage import quiet_mlflow, tracking_uri

        mlflow = quiet_mlflow()
        uri = tracking_uri(None, store)
        mlflow.set_tracking_uri(uri)
        try:
            return next(Path(mlflow.artifacts.download_artifacts(model)).rglob("ensemble.json"))
        except (mlflow.exceptions.MlflowException, StopIteration) as error:
            raise ValueError(f"{model} is not in the registry at {uri} ({error})") from error
    execution = latest(store, model)
    if execution is None:
        raise ValueError(
            f"{model!r} is no ensemble.json, no models:/ address and no pipeline in {store.root}"
        )
    record = execution.nodes.get(f"promote/{model}", {})
    if record.get("state") not in ("done", "reused"):
        raise ValueError(f"{model} has no finished ensemble yet; see `ediffi status`")
    return store.local(f"{record['folder']}/ensemble.json")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """The command: a user's mistake is one line and exit code 2, never a traceback."""
    from pipelines.remote import StorageError

    if os.environ.get("EDIFFI_DEBUG"):
        app()
    try:
        app()
    except (ValueError, StorageError) as error:
        sys.stderr.write(f"ediffi: {one_line(error)}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
