"""Run embed nodes on generated data without Ray: shard by shard, in this process."""

import embed_kit
import pytest
import torch


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """A separate home folder, for the identity cache."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(autouse=True)
def threads():
    """Restore the number of threads, which the stages set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    return embed_kit.write_encoders(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture
def here(monkeypatch):
    """Make ``embed.run`` work in this process."""
    from pipelines.steps import embed
    from pipelines.steps.embed_stages import AllStages

    def run(job, todo, embedding, cpus):
        whole = todo and AllStages(job)
        for shard in todo:
            work = passed(shard, [whole])
            if work.error:
                raise ValueError(work.error)
            yield job.store.read_json(job.path(shard, "json"))

    monkeypatch.setattr(embed, "run", run)


def passed(shard, stages):
    """Pass a shard through stages, pickled in between as in the job; returns its work."""
    import pickle

    import pyarrow as pa

    from pipelines.steps.embed_work import Work

    batch = pa.table({"work": pa.array([pickle.dumps(Work(shard))], pa.large_binary())})
    for stage in stages:
        batch = stage(batch)
    return pickle.loads(batch["work"][0].as_py())


@pytest.fixture(name="passed")
def _passed():
    return passed
