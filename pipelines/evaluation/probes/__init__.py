"""Probes of a model of the base stage: the figures of eDiff-I, in small."""
