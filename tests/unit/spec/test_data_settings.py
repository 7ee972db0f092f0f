"""Settings, captions and filters, each by itself."""

import ast
from pathlib import Path

import pytest
from dirty import JPEG
from pydantic import ValidationError

import pipelines.data
from pipelines.data.captions import clean_caption
from pipelines.data.filters import apply_filters
from pipelines.data.rows import Reason, RejectedRow, Row
from pipelines.spec.data import Data, Filters, Source
from pipelines.spec.embedding import Embedding


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "either `path:`"),
        ({"path": "a", "make": "emoji-scenes"}, "either `path:`"),
        ({"make": "emoji-scenes", "key": "id"}, "`key:` is for data of your own"),
        ({"make": "emoji-scenes", "filters": {"min_side": 3}}, "`filters:` is for data"),
        ({"make": "mnist"}, "fashion-mnist"),
        ({"make": "emoji-scenes", "concepts": []}, "at least 1 item"),
        ({"make": "fashion-mnist", "concepts": ["frog"]}, "`concepts:` is for `make: emoji"),
        ({"path": "a", "concepts": ["frog"]}, "`concepts:` is for `make: emoji"),
        ({"path": "a", "filters": {"scores": {"s": {"min": 1}}}}, "name it in `scores:`"),
        ({"path": "a", "format": "zip"}, "webdataset"),
        ({"path": "a", "filters": {"caption_characters": {}}}, "give `min:`"),
        ({"path": "a", "filters": {"caption_characters": {"min": 2, "max": 1}}}, "swap"),
        ({"path": "a", "filters": {"max_pixels": 2**30}}, "134217728"),
    ],
)
def test_settings_that_make_no_sense(settings, word):
    with pytest.raises(ValidationError, match=word):
        Source.model_validate(settings)


def test_fashion_mnist_has_so_many_pictures():
    most = {
        "train": {"make": "fashion-mnist", "rows": 60_000},
        "validation": {"make": "fashion-mnist", "rows": 10_000},
    }
    assert Data.model_validate(most).train.rows == 60_000
    for split, source in most.items():
        more = {**most, split: {**source, "rows": source["rows"] + 1}}
        with pytest.raises(ValidationError, match=f"write `{split}.rows: {source['rows']}` or"):
            Data.model_validate(more)


def test_validation_draws_nothing_that_training_never_shows():
    def data(train, validation):
        given = {"train": train, "validation": validation}.items()
        return Data.model_validate(
            {split: {"make": "emoji-scenes", "concepts": concepts} for split, concepts in given}
        )

    assert data(["frog", "cat"], ["cat"]).validation.concepts == ["cat"]
    assert data(None, ["cat"]).train.concepts is None
    with pytest.raises(ValidationError, match=r"'crown'.*write the same `validation.concepts`"):
        data(["frog", "cat"], ["cat", "crown"])
    with pytest.raises(ValidationError, match="all 36 things"):
        data(["frog", "cat"], None)


def test_captions_that_look_the_same_are_the_same():
    assert clean_caption("  caf\u0065\u0301\n au\tlait ") == "caf\u00e9 au lait"


def row(*captions, **scores):
    return Row("k", "a.tar", JPEG, captions, scores)


def test_of_several_captions_those_that_fit_are_kept():
    filters = Filters.model_validate({"caption_characters": {"min": 3, "max": 5}})
    kept, dropped = apply_filters(row("abc", "abcdef"), filters)
    assert kept == row("abc")
    assert (dropped.reason, dropped.key) == (Reason.CAPTION_DROPPED, "k")
    (bad,) = apply_filters(row("ab", "abcdef"), filters)
    assert isinstance(bad, RejectedRow) and bad.reason == Reason.CAPTION_LENGTH


def test_bounds_include_their_ends():
    filters = Filters.model_validate({"min_side": 64, "scores": {"s": {"min": 1, "max": 2}}})
    for value, passes in ((1.0, True), (2.0, True), (0.99, False), (2.01, False)):
        (found,) = apply_filters(row("a cat", s=value), filters)
        assert isinstance(found, Row) == passes
    assert isinstance(
        apply_filters(row("a cat", s=1.0), filters.model_copy(update={"min_side": 65}))[0],
        RejectedRow,
    )


def test_the_room_knows_nothing_of_engines():
    for file in Path(pipelines.data.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                assert not {"ray", "mlflow", "torch"} & {name.split(".")[0] for name in named}


@pytest.mark.parametrize("name", ["batch_tokens", "clip_batch"])
def test_a_batch_is_a_number_or_found(name):
    for given in (1, 4096, "auto"):
        assert Embedding(**{name: given}).running[name] == given
    for wrong in (0, -1, True, 2.0, "8", "Auto", None):
        with pytest.raises(ValidationError, match="whole number from 1, or auto; got"):
            Embedding(**{name: wrong})
    assert Embedding(batch_tokens="auto").packing == Embedding().packing  # not of the recipe
