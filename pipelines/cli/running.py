"""Verbs that run a pipeline and show its progress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.app import (
    DEFAULT_STORAGE,
    AsJson,
    DryRun,
    MetricsPort,
    RunId,
    RunName,
    SomeStorage,
    SpecPath,
    SpecStorage,
    app,
    asked_execution,
    asked_pipeline,
    asked_tree,
    echo,
    echo_found,
    existing_store,
    opened,
    writable,
)


@app.command(epilog="Example:  ediffi run pipelines/specs/demo.yaml")
def run(spec: SpecPath, storage: SpecStorage = None, metrics_port: MetricsPort = None) -> None:
    """Run a pipeline, or continue one that was stopped."""
    from pipelines.executor.driver import drive

    _, store, made, _ = opened(spec, storage)
    finish(*drive(made, store, metrics_port=metrics_port))


@app.command(
    epilog="\b\nExamples:\n  ediffi retrain pipelines/specs/demo.yaml\n"
    "  ediffi retrain pipelines/specs/demo.yaml --dry-run"
)
def retrain(
    spec: SpecPath,
    storage: SpecStorage = None,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    metrics_port: MetricsPort = None,
) -> None:
    """Train the champion on new data, and keep the better model.

    Every expert of the champion trains on for a share of its images. The result is compared with
    the champion on the old and the new validation data. Without new data nothing is done.
    """
    from pipelines.dag.new_data import reason_to_skip
    from pipelines.executor.driver import drive
    from pipelines.lineage.record import deliver_left

    if as_json and not dry_run:
        raise ValueError("--json goes with --dry-run; a retraining prints its progress")
    _, store, made, sources = opened(spec, storage, retrains=True)
    assert made.champion is not None
    reason = reason_to_skip(made, store, sources, made.champion)
    if dry_run:
        from pipelines.reports import retraining

        echo_found(retraining.data(made, store, sources, reason), retraining.text, as_json)
        return
    if reason:
        echo(f"skipped: {reason}")
        deliver_left(made.spec, store, lambda line: echo(line, err=True))
        return
    finish(*drive(made, store, metrics_port=metrics_port))


def finish(code: int, shown: str, wrong: list[str]) -> None:
    """Print how a run ended, and exit with its code.

    Args:
        code: The exit code; 0 returns.
        shown: What to print on stdout.
        wrong: What went wrong, a line each on stderr.
    """
    if shown:
        echo(shown)
    for line in wrong:
        echo(f"ediffi: {line}", err=True)
    if code:
        raise SystemExit(code)


@app.command(epilog="\b\nExamples:\n  ediffi status --follow\n  ediffi status emoji-scenes")
def status(
    run: RunName = None,
    storage: SomeStorage = None,
    run_id: RunId = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a run, node by node.

    The driver's machine and process, the time left, and each node's speed and time left. With
    --follow a terminal shows them live; a log file gets what changes, and a line a minute.
    """
    from pipelines.reports import status as status_view
    from pipelines.reports.live import LiveLines
    from pipelines.runs.execution import by_id

    store, execution = asked_execution(run, storage, run_id)
    if as_json:
        echo_found(status_view.data(store, execution), str, as_json)
        return

    def look() -> tuple[str, Any]:
        found = by_id(store, execution.id) or execution
        return status_view.describe_state(store, found), found

    lines = LiveLines()
    if not follow:
        lines.print(status_view.text(*look(), width=lines.width))
        return
    with lines:
        status_view.follow(look, lines)


@app.command(epilog="\b\nExamples:\n  ediffi runs\n  ediffi runs emoji-scenes --last 5")
def runs(
    pipeline: Annotated[
        str | None,
        typer.Argument(
            metavar="PIPELINE",
            help="A pipeline's name or YAML file.",
            show_default="all pipelines",
        ),
    ] = None,
    last: Annotated[
        int, typer.Option("-n", "--last", metavar="N", min=1, help="How many runs, at most.")
    ] = 20,
    storage: SomeStorage = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first.

    Their ids, which `ediffi status`, `tree` and `cancel` take, states, times, and how many of their
    nodes are done.
    """
    from pipelines.reports import runs as runs_view
    from pipelines.runs.execution import recent

    found, storage = asked_pipeline(pipeline, storage)
    store = existing_store(storage or DEFAULT_STORAGE)
    listed = recent(store, found or pipeline, last)
    if not listed and not as_json:
        of = f" of {found or pipeline}" if pipeline else ""
        echo(f"no runs{of} in {store.root} yet; start one with `ediffi run SPEC`")
        return
    echo_found(runs_view.data(store, listed), runs_view.text, as_json)


@app.command(epilog="Example:  ediffi cancel pipelines/specs/demo.yaml")
def cancel(
    run: RunName = None,
    storage: SomeStorage = None,
    run_id: RunId = None,
) -> None:
    """Cancel a run, and keep what it has finished or saved.

    Its driver, on whatever machine, receives the request within seconds, lets training nodes save
    a checkpoint, and exits with code 3. The next `ediffi run` starts a new run, which continues
    from there.
    """
    from pipelines.executor.cancel import cancel as give_up

    echo(give_up(*asked_execution(run, storage, run_id)))


@app.command(
    epilog="\b\nExamples:\n  ediffi tree\n  ediffi tree --html lineage.html\n"
    "  ediffi tree --compare RUN_A RUN_B"
)
def tree(
    run: RunName = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the tree as one HTML page with pictures.",
            show_default="printed as text",
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="RUN_A RUN_B",
            help="Compare the trees of two runs, each named as RUN.",
            show_default="one run's tree",
        ),
    ] = None,
    storage: SomeStorage = None,
    as_json: AsJson = False,
) -> None:
    """Show the expert tree of a run.

    Noise intervals, training budgets, gains over the parents, and the evaluation of the ensemble.
    """
    from pipelines.lineage.address import Runs
    from pipelines.reports import tree as tree_view
    from pipelines.reports import tree_compare, tree_page

    if compare and (run or html):
        raise ValueError("--compare names both runs; leave out RUN and --html")
    if compare:
        trees = [asked_tree(name, storage)[2] for name in compare]
        echo_found(tree_compare.compare(*trees), tree_compare.text, as_json)
        return
    if html:
        writable(html, "--html")
    store, execution, found = asked_tree(run, storage)
    if html:
        runs, pictures = Runs.from_tracking(execution.tracking), tree_page.thumbnails(store, found)
        page = tree_page.html(found, links=runs.links() if runs else None, pictures=pictures)
        html.write_text(page, encoding="utf-8")
        echo(f"{html}: the tree of {execution.id}")
        return
    echo_found(found, tree_view.text, as_json)
