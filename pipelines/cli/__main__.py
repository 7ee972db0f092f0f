"""``python -m pipelines.cli``: the command where it is not installed as one."""

from pipelines.cli import main

main()
