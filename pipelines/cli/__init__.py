"""``ediffi``, the command line: thin verbs over the other rooms. Heavy imports wait until needed.

The verbs by task are in :mod:`pipelines.cli.help`, and their functions in
:mod:`pipelines.cli.verbs`.
"""


def main() -> None:
    """Run the command line; see :func:`pipelines.cli.shell.run`.

    Ctrl-C ends it with exit code 130, also while its modules are imported.
    """
    try:
        from pipelines.cli.shell import run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
