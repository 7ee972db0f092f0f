"""A streamed evaluation equals one in memory, keeps what is done, and draws nothing twice."""

import pytest
import torch
from evaluate_kit import Blocks, ByColour, Captions, job
from PIL import Image

from ediffi_core.features import Features
from ediffi_core.measures import measure
from ediffi_core.metrics import clip_scores, kernel_distance
from pipelines.evaluation.job import Chunk
from pipelines.evaluation.parts import (
    DRAWN,
    ENLARGED,
    REAL,
    Parts,
    key,
    read,
    stored_features,
    write,
)
from pipelines.evaluation.scoring import MAIN, Scoring
from pipelines.evaluation.worker import enlarged
from pipelines.evaluation.workers import Workers, run
from pipelines.models.stages import draw, load_stages
from pipelines.store.artifacts import Store

MEASURES = ["fid", "cmmd", "precision_recall"]
torch.set_num_threads(1)


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path))


class Interrupted(Exception):
    pass


def in_memory(of):
    """All pictures drawn and held; → scores and features as tensors."""
    stages = load_stages(of.store, of.stages, of.weights)
    source, clip = of.source(), ByColour("cpu")
    captions = source.captions(range(of.count))
    cond, real = source.read(range(of.count))
    drawn = {n: x.numpy() for n, x in draw(stages, cond, seed=of.seed, batch=of.batch).items()}
    pictures = drawn[stages[-1].name]
    plain = enlarged(drawn[stages[0].name], stages[-1].resolution)
    features = {
        what: clip.image([Image.fromarray(x) for x in of_them])
        for what, of_them in ((DRAWN, pictures), (REAL, real), (ENLARGED, plain))
    }
    return {
        "pictures": pictures,
        "clip": clip_scores(features[DRAWN], clip.text(captions)[1]),
        "kernel": kernel_distance(features[DRAWN], features[REAL]),
        "enlarged": kernel_distance(features[ENLARGED], features[REAL]),
        "sets": measure(
            MEASURES,
            Features.of(Blocks("blocks", "cpu").features(pictures)),
            Features.of(Blocks("blocks", "cpu").features(real)),
        ),
    }


def real_features(store, folder="real", count=20):
    """By a job that draws nothing, with two batches in a part."""
    of = job(store, folder, count=count, stages=(), weights={}, batches_per_part=2)
    parts = run(of, Workers())
    paths = [of.path(chunk) for chunk in of.pictures()]
    assert len(paths) == 3
    assert torch.equal(
        torch.cat(list(parts.features(REAL, "blocks").blocks())),
        torch.cat(list(stored_features(store, paths, REAL, "blocks", count=count).blocks())),
    )
    return stored_features(store, paths, REAL, "blocks", count=count)


@pytest.mark.slow
def test_a_stream_equals_what_is_held_in_memory(store):
    of = job(store)
    parts, whole = run(of, Workers()), in_memory(of)
    near = {"rtol": 0, "atol": 1e-9}
    real = parts.features(REAL, MAIN)
    torch.testing.assert_close(parts.scores[DRAWN]["clip_score"], whole["clip"], **near)
    for what, name in ((DRAWN, "kernel"), (ENLARGED, "enlarged")):
        found = kernel_distance(parts.features(what, MAIN), real)
        torch.testing.assert_close(found, whole[name], **near)
    sets = measure(MEASURES, parts.features(DRAWN, "blocks"), real_features(store))
    for name, one in whole["sets"].items():
        assert sets[name].value == pytest.approx(one.value, abs=1e-9), name
        assert sets[name].sha256 == Blocks("blocks", "cpu").sha256
    assert (parts.shown() == whole["pictures"][:6]).all()
    assert REAL not in parts.extractors or "blocks" not in parts.extractors[REAL]


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_where_it_was(store):
    whole = run(job(store, "whole"), Workers())
    of = job(store, "broken")

    def until(done, _):
        if done == 12:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(of, Workers(), until)
    there = [store.size(of.path(chunk)) is not None for chunk in of.pictures()]
    assert there == [True, True, True, False, False]
    seen = []
    marked = of.pictures()[2]
    tensors = read(store, of.path(marked))
    score = key(DRAWN, "scores", "clip_score")
    write(of, marked, {**tensors, score: tensors[score] + 1})  # stays if it is not drawn again
    parts = run(of, Workers(), lambda done, total: seen.append((done, total)))
    assert seen == [(16, 20), (20, 20)]
    found, right = (one.scores[DRAWN]["clip_score"] for one in (parts, whole))
    rows = torch.arange(20)
    again = (rows >= 8) & (rows < 12)
    assert torch.equal(found, right + again)
    run(of, Workers(), lambda *_: pytest.fail("nothing is left to draw"))


def test_chunks_cover_everything_once_whatever_the_batch(store):
    for batch, sizes in ((8, [8, 8, 4]), (20, [20]), (64, [20])):
        chunks = job(store, batch=batch).pictures()
        assert [len(chunk) for chunk in chunks] == sizes
        assert [chunk.start for chunk in chunks] == [batch * i for i in range(len(sizes))]
    folders = {job(store, batch=batch).parts_folder for batch in (8, 20)}
    assert len(folders) == 2


def test_a_score_that_no_caption_of_a_chunk_asks_for_is_nothing_there(store):
    of = job(store, count=5, batch=3)
    first, second = of.pictures()
    some = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    write(of, first, {key(DRAWN, "scores", "pairs"): some, key(DRAWN, "scores", "things"): some})
    write(of, second, {key(DRAWN, "scores", "things"): some[:2]})
    found = Parts(of).scores[DRAWN]
    assert found["things"].tolist() == [1, 2, 3, 1, 2]
    assert found["pairs"][:3].tolist() == [1, 2, 3] and bool(found["pairs"][3:].isnan().all())


def test_a_lost_part_is_named(store):
    of = job(store, count=5, batch=3)
    with pytest.raises(ValueError, match=r"e/parts/3/pictures-00000000.safetensors is missing"):
        _ = Parts(of).scores


def test_a_damaged_part_is_named(store):
    of = job(store, count=5, batch=3)
    store.write(of.path(of.pictures()[0]), b"half of it")
    with pytest.raises(ValueError, match=r"pictures-00000000.safetensors is damaged .*remove it"):
        _ = Parts(of).scores


def test_a_network_that_cannot_be_loaded_is_one_line(store):
    def load(device):
        raise ValueError("`evaluate.features.x.weights`: there is no file x")

    of = job(store, scoring=Scoring(features={"x": load}))
    with pytest.raises(ValueError, match="there is no file x"):
        run(of, Workers())


def test_the_source_of_the_kit_is_the_same_row_by_row():
    source = Captions(10, 8)
    cond, real = source.read(range(10))
    part, some = source.read(range(4, 7))
    assert torch.equal(cond[slice(4, 7)].any_tensor(), part.any_tensor())
    assert (real[4:7] == some).all()
    assert Chunk("pictures", 4, 7).file == "pictures-00000004.safetensors"
