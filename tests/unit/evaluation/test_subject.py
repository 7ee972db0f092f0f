"""What identifies a model's pictures, so that a stored point is taken only for the same ones."""

from dataclasses import replace

from pipelines.evaluation.subject import Subject


def subject(**sampling):
    stages = [
        {"name": "base", "resolution": 8, "experts": {"E0_0": [0, 1]}, "sampling": sampling},
    ]
    weights = {"base/E0_0": {"sha256": "a", "fingerprint": "t", "path": "p", "expert": "E0_0"}}
    return Subject(
        name="m", pipeline="m", store=None, stages=stages, weights=weights, trained_with={}, data={}
    )


def trained_again(model, **changes):
    weights = {name: {**one, **changes} for name, one in model.weights.items()}
    return replace(model, weights=weights)


def test_the_same_weights_of_another_training_draw_the_same():
    model = subject(steps=3)
    assert trained_again(model, fingerprint="u", path="q").identity == model.identity
    assert trained_again(model, sha256="b").identity != model.identity


def test_averages_of_another_length_are_those_of_a_trainings_snapshots():
    model = subject(ema_length=0.1)
    assert trained_again(model, fingerprint="u").identity != model.identity
