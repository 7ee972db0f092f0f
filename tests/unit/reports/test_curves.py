"""Curves: what is plotted is what the file says, and which point is the best."""

import json
import math

import pytest

from ediffi_core.distances import Measured
from pipelines.evaluation.curve import Curve, Line, Point, best
from pipelines.reports import curves


def measured(value, half=0.1):
    return Measured(
        value=value, low=value - half, high=value + half, count=9, features="", sha256=""
    )


def point(w, x, y, half=0.1):
    return Point(
        setting={"guidance": w},
        fingerprint=f"{w}",
        measures={"clip_score": measured(x, half), "fid/inception": measured(y, half)},
    )


def curve(*lines, along="guidance"):
    return Curve(
        title="a title",
        command="ediffi evaluate a b",
        along=along,
        alignment="clip_score",
        distance="fid/inception",
        about={"captions": 9},
        lines=lines,
    )


TWO = curve(
    Line(model="a", points=[point(0.0, 0.2, 9.0), point(1.0, 0.25, 7.0), point(2.0, 0.3, 8.0)]),
    Line(model="b", fixed={"steps": 5}, points=[point(0.0, 0.1, 9.5, half=math.inf)]),
)


@pytest.mark.slow
def test_the_plot_has_the_values_of_the_file(tmp_path):
    curves.write(TWO, tmp_path)
    stored = json.loads((tmp_path / "points.json").read_text())
    figure = curves.figure(TWO)
    [axes] = figure.axes
    assert [c.get_label() for c in axes.containers] == ["a", "b, steps 5"]
    for container, line in zip(axes.containers, stored["lines"], strict=True):
        marks, _, whiskers = container.lines
        points = [p["measures"] for p in line["points"]]
        for values, measure in zip(marks.get_data(), ("clip_score", "fid/inception"), strict=True):
            assert list(values) == [p[measure]["value"] for p in points]
        for bars, axis, measure in zip(whiskers, (0, 1), ("clip_score", "fid/inception")):
            for segment, p in zip(bars.get_segments(), points, strict=True):
                ends = [p[measure]["low"], p[measure]["high"]]
                known = [p[measure]["value"] if end is None else end for end in ends]
                assert segment[:, axis].tolist() == pytest.approx(known)
    labels = [text.get_text() for text in axes.texts]
    assert {"0", "1", "2"} <= set(labels)
    assert axes.get_ylabel() == "FID (inception), lower is better"


def test_a_point_survives_its_file():
    for line in TWO.lines:
        for one in line.points:
            assert Point.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_the_best_point_has_the_highest_alignment_within_the_interval_of_the_lowest_distance():
    a, b, c = point(0.0, 0.2, 7.05), point(1.0, 0.1, 7.0), point(2.0, 0.4, 7.2)
    assert best([a, b, c], "clip_score", "fid/inception") is a
    unknown = point(1.0, 0.1, 7.0, half=math.inf)
    assert best([a, unknown, c], "clip_score", "fid/inception") is unknown


def test_the_page_has_the_command_and_a_row_for_each_point():
    page = curves.markdown(TWO)
    assert "ediffi evaluate a b" in page
    assert "| model | guidance | clip_score ↑ | fid/inception ↓ |" in page
    assert "| a | 1 | 0.250 [0.150, 0.350] | 7.000 [6.900, 7.100] |" in page
    assert "| b | 0 | 0.100 | 9.500 |" in page
    assert "- a: guidance 1\n" in page
