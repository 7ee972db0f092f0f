"""The scorer's network, in a module of its own: specs import the scorer without torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.demo.classifiers import trunk
from pipelines.demo.fashion.captions import CLASSES


class Network(nn.Module):
    """Classifier of images [N, 3, 64, 64] in [-1, 1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.trunk = trunk(width)
        self.classes = nn.Linear(4 * width * 16, len(CLASSES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """→ logits of classes [N, 10], and pooled features [N, 128]."""
        h = self.trunk(x)
        return self.classes(F.dropout(h.flatten(1), 0.3, self.training)), h.mean((2, 3))
