"""Descriptions of weights that tests make up."""

from ediffi_core.checkpoint import Card
from ediffi_core.noise import NoiseDistribution


def card(name, interval, network, *, images=1, averaged=True):
    """The description of an expert without a parent."""
    return Card(
        expert=name,
        interval=interval,
        noise=NoiseDistribution(),
        sigma_data=0.5,
        network=network,
        images=images,
        averaged=averaged,
        parent=None,
    )
