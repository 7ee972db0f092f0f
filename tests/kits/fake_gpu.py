"""A fake GPU for machines without one: it computes shapes, dtypes and devices only."""

from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READ = torch.ops.aten._local_scalar_dense.default
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class FakeGPU(TorchDispatchMode):
    """Inside the context ``cuda`` tensors are fake and CPU tensors real.

    Mixing devices raises PyTorch's usual error. ``syncs`` counts operations that would block on a
    real GPU: numbers read back, copies to the CPU, copies from it that are not non-blocking, and
    results whose size depends on data. Every number read back is 1 (True).
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.syncs = Counter()

    def __enter__(self):
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.fake.__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            # In inference mode, calls arrive here before they are decomposed.
            with self:
                if (parts := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return parts
        leaves = tree_leaves((args, kwargs))
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        there = [t for t in tensors if isinstance(t, FakeTensor)]
        goes = kwargs.get("device")
        if not there and (goes is None or torch.device(goes).type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is READ:
            self.syncs["number read"] += 1
            return 1
        if func in COPIES:
            self._count(func, args, kwargs)
        return func(*args, **kwargs)

    def _count(self, func, args, kwargs):
        if func is torch.ops.aten.copy_.default:
            to, source, quick = args[0].device, args[1].device, args[2:3] == (True,)
        else:
            to, source = torch.device(kwargs.get("device") or args[0].device), args[0].device
            quick = kwargs.get("non_blocking", False)
        if source.type == "cuda" and to.type == "cpu":
            self.syncs["copied back"] += 1
        elif source.type == "cpu" and to.type == "cuda" and not quick:
            self.syncs["copied there"] += 1
