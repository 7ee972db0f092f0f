"""Names of the solvers in :mod:`ediffi_core.sampling`. Does not import torch."""

SOLVER_NAMES = ("euler", "heun", "deis1", "deis2", "deis3", "dpm++2m")
