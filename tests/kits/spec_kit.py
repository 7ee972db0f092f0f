"""A valid spec of two experts, to be changed into what a test asks about."""

SPEC = """
name: mine
data: {train: {path: a}, validation: {path: b}}
stages:
  base:
    training: {batch: 16}
    experts: {E0_0: {images: 64}, E1_1: {images: 64}, E1_0: {images: 64}}
    ensemble: [E1_1, E1_0]
"""
