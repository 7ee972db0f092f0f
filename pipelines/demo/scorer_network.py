"""The scorer's network, in a module of its own: specs import the scorer without torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipelines.demo.classifiers import trunk
from pipelines.demo.drawings import ARTISTS, CONCEPTS
from pipelines.demo.scenes import PLACES


class Network(nn.Module):
    """Classifier of images [N, 3, 64, 64] in [-1, 1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.trunk = trunk(width)
        self.concepts = nn.Linear(
            4 * width * 16, len(PLACES) * (len(CONCEPTS) + 1)
        )  # 1 for nothing
        self.artists = nn.Linear(4 * width * 16, len(ARTISTS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """→ logits of concepts [N, 3, 37] and artists [N, 5], and pooled features [N, 128]."""
        h = self.trunk(x)
        flat = F.dropout(h.flatten(1), 0.3, self.training)
        return (
            self.concepts(flat).unflatten(1, (len(PLACES), -1)),
            self.artists(flat),
            h.mean((2, 3)),
        )
