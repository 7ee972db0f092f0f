"""Verbs that serve a trained ensemble: over HTTP to programs, and as a page to people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.app import (
    DEFAULT_STORAGE,
    MODEL_NAMES,
    MetricsPort,
    app,
    echo,
    storage_option,
)

if TYPE_CHECKING:
    from pipelines.spec.serving import Serving

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help=MODEL_NAMES, show_default="`model:` of --config"),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML file with settings of the service; options of the command come before it.",
        show_default="each setting's own default",
    ),
]
SomeStorage = Annotated[
    str | None, storage_option(f"`storage:` of --config, else {DEFAULT_STORAGE}")
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address to listen at; any but this machine's own needs a token in EDIFFI_TOKEN, and "
        "--allow-host with each name that callers use.",
        show_default="127.0.0.1",
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Port to listen at, 0 for any that is free.", show_default="8000"
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Name by which callers may address it, besides its address; can be repeated.",
        show_default="none",
    ),
]


@app.command(
    epilog="\b\nExamples:\n  ediffi serve emoji-scenes@champion\n"
    "  ediffi serve emoji-scenes --replicas 2 --port 9000\n"
    "  ediffi serve --config serve.yaml --check-only\n\n"
    "\b\nIf it does not start:\n"
    "  port taken     give another with --port; 0 is any that is free\n"
    "  unknown model  list those of a store with `ediffi models --storage PATH`\n"
    "  no token       for other machines: export EDIFFI_TOKEN=$(openssl rand -hex 16)\n"
)
def serve(
    model: Model = None,
    config: Config = None,
    storage: SomeStorage = None,
    host: Host = None,
    port: Port = None,
    allow_host: AllowHost = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Replicas at most; more than one are started by load.",
            show_default="`replicas:` of --config, else 1",
        ),
    ] = None,
    metrics_port: MetricsPort = None,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Check the settings and the model, and end.")
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="Say whether a picture has the watermark of `marks.invisible`, and end.",
            show_default="serve",
        ),
    ] = None,
) -> None:
    """Draw pictures for programs, over HTTP.

    Runs on Ray Serve, on this machine or on the cluster in RAY_ADDRESS, until Ctrl-C or SIGTERM;
    then it takes no more requests and finishes those it has. The API is OpenAI's for pictures,
    and one with all that `ediffi sample` can do.
    """
    if check is not None:
        from pipelines.serving.marks import check_file

        echo(str(check_file(check)))
        return
    serving = asked(
        model, config, storage=storage, host=host, port=port, allow_host=allow_host,
        replicas=replicas,
    )  # fmt: skip
    from pipelines.serving.access import free_port, token_of

    is_local = not os.environ.get("RAY_ADDRESS")
    token_of(serving)  # refused before anything is started
    if is_local:
        serving = serving.model_copy(update={"port": free_port(serving.host, serving.port)})
    if check_only:
        echo(f"{serving.model} of {serving.storage} can be served")
        return

    from pipelines.executor.ray_cluster import start_ray, stderr_closed
    from pipelines.executor.stopping import Stop

    with Stop() as stop:
        echo("starts Ray" if is_local else f"joins Ray at {os.environ['RAY_ADDRESS']}")
        start_ray(serving.replicas.max * serving.replicas.cpus, metrics_port=metrics_port)
        import ray

        from pipelines.serving import on_ray, ray_app

        stop.listen()
        try:
            with stderr_closed():  # Ray and Serve write to it what is no mistake of the user's
                on_ray.deploy(ray_app.application(serving, creator(serving)), serving)
                patience_s = 0.0  # until it runs it has no requests, but may load a large model
                if on_ray.watch(lambda: stop.signal is not None, typer.echo):
                    patience_s = serving.queue.deadline_s
                    for line in introduction(serving, on_ray.metrics_address()):
                        echo(line)
                    on_ray.follow(lambda: stop.signal is not None, typer.echo)
                    echo("takes no more requests, and finishes those it has")
                on_ray.withdraw(patience_s)
        finally:
            with stderr_closed():
                ray.shutdown()


@app.command(
    epilog="\b\nExamples:\n  ediffi studio emoji-scenes\n"
    "  ediffi studio emoji-scenes@champion --port 9000 --open"
)
def studio(
    model: Model = None,
    config: Config = None,
    storage: SomeStorage = None,
    host: Host = None,
    port: Port = None,
    allow_host: AllowHost = None,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser.")
    ] = False,
) -> None:
    """Paint with words on a page in the browser.

    One process without Ray, until Ctrl-C. The page shows the picture while it is drawn, and which
    expert is at work. It calls the same API as the programs of `ediffi serve`.
    """
    serving = asked(model, config, storage=storage, host=host, port=port, allow_host=allow_host)
    serving = serving.model_copy(update={"studio": True})
    from pipelines.serving.access import address_of, listening, token_of

    token_of(serving)  # refused before anything is loaded
    with listening(serving.host, serving.port) as opened:
        page = f"{address_of(serving.host, opened.getsockname()[1])}/"
        echo(f"loads {serving.model}")

        from transformers.utils.logging import disable_progress_bar

        from pipelines.executor.stopping import Stop
        from pipelines.serving import alone

        disable_progress_bar()

        def ready() -> None:
            echo(f"{serving.model} is at {page}")
            if open_browser:
                typer.launch(page)

        with Stop() as stop:
            alone.run(serving, creator(serving), opened, ready, lambda: stop.signal is not None)


def asked(
    model: str | None,
    config: Path | None,
    *,
    storage: str | None = None,
    host: str | None = None,
    port: int | None = None,
    allow_host: list[str] | None = None,
    replicas: int | None = None,
) -> Serving:
    """The settings of a file with those of the command line laid over it, its model found.

    Returns:
        The settings; a local store and an ``ensemble.json`` are absolute, since Ray's processes
        have a working directory of their own.

    Raises:
        ValueError: They are invalid, or there is no such model.
    """
    from pipelines.lineage.lookup import find_model
    from pipelines.spec.loading import check_serving, merged, read_yaml
    from pipelines.store.artifacts import Store

    raw = read_yaml(config, "configuration", "must hold `model:`") if config else {}
    given: dict[str, Any] = {
        "model": model,
        "storage": storage,
        "host": host,
        "port": port,
        "allowed_hosts": allow_host or None,
        "replicas": {"max": replicas} if replicas else None,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    serving = check_serving(merged(raw, changes), str(config or "the command line"))
    found = find_model(serving.model, serving.storage)
    return serving.model_copy(
        update={
            "storage": Store.at(serving.storage).check_access().root,
            "model": str(found.absolute()) if serving.model.endswith(".json") else serving.model,
        }
    )


def creator(serving: Serving) -> Any:
    """What makes the HTTP side: with the studio's page, or without."""
    if serving.studio:
        from pipelines.studio.app import create_studio

        return create_studio
    from pipelines.serving.app import create_app

    return create_app


def introduction(serving: Serving, metrics: str) -> list[str]:
    """What a caller needs to know: the address, and a call to be copied into a shell."""
    from pipelines.serving.access import address_of, token_of

    address = address_of(serving.host, serving.port)
    token = token_of(serving) and f' -H "Authorization: Bearer ${serving.token_variable}"'
    return [
        f"{serving.model} is served at {address}",
        f"metrics for Prometheus: {metrics}",
        f"try: curl {address}/v1/images/generations{token or ''} "
        "-H 'Content-Type: application/json' -d '{\"prompt\": \"a frog\"}'",
    ]
