"""Names of the solvers in :mod:`ediffi_core.sampling`. Does not import torch."""

SINGLE_STEP = ("euler", "heun")
"""Solvers without history: they take churn."""

MULTISTEP = ("deis1", "deis2", "deis3", "dpm++2m")
"""Solvers with history: it may be dropped where another expert takes over."""

SOLVER_NAMES = (*SINGLE_STEP, *MULTISTEP)
