"""A drawing that is watched: what is told of each step, pictures that leave, and errors."""

import ensemble_kit
import numpy as np
import pytest
import torch
from ensemble_kit import EXPERTS, FOLDER, SIDES

from pipelines.models import rows
from pipelines.models.render import Inputs, render
from pipelines.models.request import Picture, Request
from pipelines.models.rows import Options, Row
from pipelines.models.text_to_image import TextToImage
from pipelines.models.watch import Abandoned

pytestmark = pytest.mark.slow

PROMPTS = ["a frog", "a frog and a rocket, on a pink background", "a rocket"]
STEPS = 4


class Watching:
    """Keeps all that it is told, and wants the rows that ``leave`` does not name by now."""

    def __init__(self, count=3, leave=None):
        self.count, self.leave = count, leave or {}
        self.steps, self.pictures = [], []

    def step(self, done):
        self.steps.append(done)
        self.pictures.append(done.pictures())

    def wanted(self):
        gone = [row for at, row in self.leave.items() if len(self.steps) >= at]
        return [row not in gone for row in range(self.count)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    torch.set_num_threads(1)
    return ensemble_kit.make(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(store):
    return TextToImage.load(store.local(f"{FOLDER}/ensemble.json"))


@pytest.fixture(scope="module")
def plain(model):
    return model.sample(PROMPTS, seed=5)


def test_every_step_is_told_with_its_expert_and_picture(model, plain, monkeypatch):
    watch, routed = Watching(), []
    for stage in model.stages:
        monkeypatch.setattr(stage.denoiser, "on_route", lambda event: routed.append(event.expert))
    assert np.array_equal(model.sample(PROMPTS, seed=5, watch=watch), plain)
    told = [(s.stage, s.step, s.steps) for s in watch.steps]
    assert told == [(stage, step, STEPS) for stage in EXPERTS for step in range(STEPS)]
    sigmas = [s.sigma for s in watch.steps]
    assert sigmas == [s for stage in model.stages for s in stage.sigmas()[:-1].tolist()]
    assert [s.expert for s in watch.steps] == routed and set(routed) == {"E1_0", "E1_1", "E0_0"}
    assert all(s.seconds > 0 for s in watch.steps)
    for step, pictures in zip(watch.steps, watch.pictures, strict=True):
        side = SIDES[step.stage]
        assert pictures.shape == (3, side, side, 3) and pictures.dtype == np.uint8
    assert np.array_equal(watch.pictures[-1], plain)  # the last step gives what it denoised
    assert not np.array_equal(watch.pictures[0], watch.pictures[STEPS - 1])


@pytest.mark.parametrize("at", [0, 2, STEPS, STEPS + 3])
def test_pictures_that_stay_do_not_notice_who_leaves(at, model, plain):
    found = model.sample(PROMPTS, seed=5, watch=Watching(leave={at: 1}))
    assert np.array_equal(found[[0, 2]], plain[[0, 2]])
    assert not np.array_equal(found[1], plain[1])


@pytest.mark.parametrize("at", [0, 3])
def test_nobody_wants_it(at, model, plain):
    watch = Watching(count=1, leave={at: 0})
    with pytest.raises(Abandoned):
        model.sample(PROMPTS[:1], seed=5, watch=watch)
    assert len(watch.steps) == at
    assert np.array_equal(model.sample(PROMPTS, seed=5), plain)


@pytest.mark.parametrize("residency", ["all", "current", "disk"])
@pytest.mark.parametrize("at", [0, 2, 6])
def test_a_watch_that_raises_leaves_the_model_as_it_was(residency, at, store, plain):
    class Raising(Watching):
        def step(self, done):
            super().step(done)
            if len(self.steps) > at:
                raise ConnectionError("the reader is gone")

    model = TextToImage.load(store.local(f"{FOLDER}/ensemble.json"), residency)
    with pytest.raises(ConnectionError, match="the reader is gone"):
        model.sample(PROMPTS, seed=5, watch=Raising())
    assert np.array_equal(model.sample(PROMPTS, seed=5), plain)


def test_a_watch_follows_one_batch(model):
    with pytest.raises(ValueError, match="3 do not fit in `batch=2`; write 3"):
        model.sample(PROMPTS, batch=2, watch=Watching())
    one, two = (
        Row(prompt="a frog", seed=0, paint=[], options=Options(sampling=s))
        for s in ("{}", '{"steps": 3}')
    )
    with pytest.raises(ValueError, match="these have 2 different options"):
        rows.draw(model, [one, two], watch=Watching())


def test_rows_have_their_seed_and_number_in_any_company(model):
    """``ediffi sample -n 3 --seed 5`` draws (5, 0), (5, 1) and (5, 2)."""
    pairs = [(5, 0), (5, 1), (5, 2)]
    expected = model.sample(["a frog"] * 3, seed=5)
    pictures = [Picture(prompt="a frog", seed=s, number=n) for s, n in pairs]
    mixed = [Picture(prompt="a rocket", seed=9, number=4), pictures[2], pictures[0], pictures[1]]

    for asked in (pictures, mixed, [pictures[1], mixed[0], pictures[0], pictures[2]]):
        request = Request(pictures=asked, sampling=dict(model.sampling))
        [(_, rendered)] = render(model, request, Inputs(), range(len(asked)))
        options = Options()
        made = [
            Row(prompt=p.prompt, seed=p.seed, number=p.number, paint=[], options=options)
            for p in asked
        ]
        drawn = rows.draw(model, made)
        for i, picture in enumerate(asked):
            if picture in pictures:
                wanted = expected[pictures.index(picture)]
                assert np.array_equal(rendered[i], wanted) and np.array_equal(drawn[i], wanted)
