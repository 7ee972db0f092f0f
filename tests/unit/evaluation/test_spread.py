"""Training pictures that stand for more of them than anybody can look at."""

import itertools

from pipelines.evaluation.job import RUN, Spread


class Numbers:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, rows):
        return None, rows


def test_runs_are_spread_from_the_first_row_to_the_last():
    for there, count in ((10**9, 1000), (1001, 1000), (200, 130), (10**9, 10**6)):
        spread = Spread(Numbers(there), count)
        rows = spread.rows(range(count))
        assert (len(spread), rows[0], rows[-1]) == (count, 0, there - 1)
        steps = [after - before for before, after in itertools.pairwise(rows)]
        apart = {step for at, step in enumerate(steps, 1) if at % RUN == 0}
        assert {step for at, step in enumerate(steps, 1) if at % RUN} == {1}
        assert min(apart) >= 1 and max(apart) - min(apart) <= 1


def test_rows_do_not_depend_on_the_batch():
    spread = Spread(Numbers(1000), 300)
    together = spread.read(range(300))[1]
    assert [r for at in range(0, 300, 7) for r in spread.read(range(at, min(at + 7, 300)))[1]] == (
        together
    )


def test_fewer_than_asked_for_are_all_taken():
    spread = Spread(Numbers(50), 10**6)
    assert spread.rows(range(len(spread))) == list(range(50))
