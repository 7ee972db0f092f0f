"""A database in trouble that will pass delays the record; a faulty item alone is set aside."""

import pytest
import sqlalchemy
from record_kit import NODE, points, runs_of
from sqlalchemy import exc
from sqlalchemy.engine import Engine

from pipelines.lineage import delivery

WRITES = ("INSERT", "UPDATE", "DELETE")
# As SQLAlchemy raises them; MLflow turns all of them into BAD_REQUEST or INTERNAL_ERROR.
TROUBLES = {
    "read-only": (
        WRITES,
        lambda: exc.InternalError("INSERT", {}, Exception("the transaction is read-only")),
    ),
    "pool": (
        (*WRITES, "SELECT"),
        lambda: exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"),
    ),
    "closed": (
        (*WRITES, "SELECT"),
        lambda: exc.InterfaceError("SELECT", {}, Exception("connection already closed")),
    ),
}


class Trouble:
    """Raises an error for the statements that ``hits`` picks, while it is ``on``."""

    def __init__(self, hits, error):
        self.hits, self.error = hits, error
        self.on, self.count = True, 0

    def __call__(self, connection, cursor, statement, parameters, context, many):
        if self.on and self.hits(statement, parameters):
            self.count += 1
            raise self.error()  # SQLAlchemy adds to it


@pytest.fixture
def trouble(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(delivery, "MAX_PAUSE_S", 0.01)
    made = []

    def begin(hits, error):
        made.append(Trouble(hits, error))
        sqlalchemy.event.listen(Engine, "before_cursor_execute", made[-1])
        return made[-1]

    yield begin
    for each in made:
        sqlalchemy.event.remove(Engine, "before_cursor_execute", each)


@pytest.mark.parametrize("kind", TROUBLES)
def test_the_record_waits_for_a_database_in_trouble(driver, trouble, kind):
    mine = driver()
    mine.start()
    mine.report(1, loss=0.5)
    mine.until(lambda: mine.lineage.spool.is_empty, "the delivery of all")
    verbs, error = TROUBLES[kind]
    bad = trouble(lambda statement, _: statement.startswith(verbs), error)
    mine.start("data/train")
    mine.report(2, loss=0.25)
    # Four tries in a row were taken for a faulty item before.
    mine.until(lambda: bad.count > 20 or mine.lineage.spool.is_empty, "many tries")
    assert mine.lineage.spool.pending == 2
    bad.on = False
    mine.close()
    uri = mine.lineage.uri
    assert points(uri, "loss") == [(1, 0.5), (2, 0.25)] and len(runs_of(uri)["data/train"]) == 1
    away, back = mine.said
    assert " is unreachable (" in away and str(error())[:20] in away
    assert back.endswith("is reachable again and has everything that waited")


def test_an_item_that_fails_alone_is_set_aside_by_name(driver, trouble):
    mine = driver()
    mine.start()
    trouble(
        lambda statement, given: "long" in str(given) and "metrics" in statement,
        lambda: exc.DataError("INSERT", {}, Exception("value too long")),
    )
    mine.report(1, loss=0.5)
    mine.report(2, long=0.5)
    mine.report(3, loss=0.25)
    mine.close()
    assert points(mine.lineage.uri, "loss") == [(1, 0.5), (3, 0.25)]
    [told, summary] = mine.said
    assert told.startswith(f"MLflow rejects metrics {NODE} (") and "value too long" in told
    assert summary == f"the MLflow record lacks 1 items that MLflow rejected: metrics {NODE}"


def test_after_an_outage_it_says_what_was_set_aside(driver, trouble):
    mine = driver()
    verbs, error = TROUBLES["read-only"]
    bad = trouble(lambda statement, _: statement.startswith(verbs), error)
    mine.start()
    mine.report(1, **{"no/such?key": 1.0})
    mine.report(2, loss=0.5)
    mine.until(lambda: bad.count > 5, "some tries")
    bad.on = False
    mine.close()
    assert points(mine.lineage.uri, "loss") == [(2, 0.5)]
    away, refused, back, summary = mine.said
    assert "waits in" in away and "no/such?key" in refused
    assert back.endswith("everything that waited, but for 1 items that it rejects")
    assert summary.endswith(f"rejected: metrics {NODE}")


@pytest.mark.parametrize("is_only_one", [False, True], ids=["all files", "one file"])
def test_a_file_waits_for_the_place_of_files(driver, monkeypatch, is_only_one):
    """Where files are kept fails on its own; MLflow's database takes every write meanwhile."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    monkeypatch.setattr(delivery, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(delivery, "MAX_PAUSE_S", 0.01)
    upload, tries = LocalArtifactRepository.log_artifact, []

    def fails(self, file, artifact_path=None):
        if len(tries) < 20 and not (is_only_one and "write_check" in str(file)):
            tries.append(file)
            raise RuntimeError("the bucket is gone")  # as boto3's errors, which are no OSError
        return upload(self, file, artifact_path)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", fails)
    mine = driver()
    mine.start()
    mine.store.write("nodes/picture.png", b"a picture")
    mine.lineage.report(NODE, {"time_ms": 1, "picture": "nodes/picture.png"})
    mine.until(lambda: mine.lineage.spool.is_empty, "the delivery of all")
    client, [run] = mine.lineage.writer.client, runs_of(mine.lineage.uri)[NODE]
    found = [each.path for each in client.list_artifacts(run.info.run_id, "samples")]
    assert found == ([] if is_only_one else ["samples/picture.png"])
    names = {f"picture {NODE}": 1} if is_only_one else {}
    assert mine.lineage.delivery.rejected == names
