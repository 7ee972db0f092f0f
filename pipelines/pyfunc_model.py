"""Loads models that were registered before their loader moved to :mod:`pipelines.models.pyfunc`.

MLflow keeps a loader's name with every version of a model, so this one stays.
"""

from pipelines.models.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
