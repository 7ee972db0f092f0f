"""The grammar of swept settings, and which points a sweep has."""

import pytest

from pipelines.evaluation.sweep import Sweep, label


def test_ranges_include_both_ends_and_are_exact():
    swept = Sweep.parse(guidance="0:10:0.1")
    assert len(swept.axes["guidance"]) == 101
    assert swept.axes["guidance"][3] == 0.3 and swept.axes["guidance"][-1] == 10


def test_a_step_that_misses_the_end_stops_before_it():
    assert Sweep.parse(guidance="0:1:0.4").axes["guidance"] == [0, 0.4, 0.8]


def test_lists_and_ranges_mix_and_are_sorted_without_repeats():
    assert Sweep.parse(guidance="8, 0:2:1,1,4").axes["guidance"] == [0, 1, 2, 4, 8]
    steps = Sweep.parse(steps="40,5").axes["steps"]
    assert steps == [5, 40] and all(type(n) is int for n in steps)
    assert Sweep.parse(solver="heun,deis3,heun").axes["solver"] == ["heun", "deis3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance": ""}, "cannot be read at ''"),
        ({"guidance": "1:2"}, "cannot be read at '1:2'"),
        ({"guidance": "a"}, "cannot be read at 'a'"),
        ({"guidance": "nan"}, "cannot be read at 'nan'"),
        ({"guidance": "1e99999999999"}, "cannot be read"),
        ({"guidance": "0:10:0"}, "has no values"),
        ({"guidance": "3:1:1"}, "has no values"),
        ({"guidance": "-1,2"}, "the least is 0"),
        ({"guidance": "0:10:0.00001"}, "more than 1,000 values"),
        ({"steps": "0"}, "the least is 1"),
        ({"steps": "2.5"}, "write whole numbers"),
        ({"solver": "heum"}, "did you mean `heun`"),
        ({"solver": "dpm++2m,"}, "there is no ''"),
    ],
)
def test_bad_values_are_refused_in_one_line(given, message):
    with pytest.raises(ValueError) as error:
        Sweep.parse(**given)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert f"--{next(iter(given))}" in str(error.value)


def test_points_vary_along_the_first_axis_and_lines_are_the_product_of_the_others():
    swept = Sweep.parse(guidance="0,2", steps="5,10", solver="heun,euler")
    assert swept.along == "guidance"
    assert [label(line) for line in swept.lines] == [
        "steps 5, solver heun",
        "steps 5, solver euler",
        "steps 10, solver heun",
        "steps 10, solver euler",
    ]
    assert swept.points(swept.lines[0]) == [
        {"guidance": 0.0, "steps": 5, "solver": "heun"},
        {"guidance": 2.0, "steps": 5, "solver": "heun"},
    ]


def test_without_axes_there_is_one_point_with_the_models_own_settings():
    swept = Sweep.parse()
    assert swept.along is None
    assert [swept.points(line) for line in swept.lines] == [[{}]]


def test_solvers_alone_are_lines_of_one_point():
    swept = Sweep.parse(solver="heun,deis3")
    assert swept.along is None
    assert [swept.points(line) for line in swept.lines] == [
        [{"solver": "heun"}],
        [{"solver": "deis3"}],
    ]
