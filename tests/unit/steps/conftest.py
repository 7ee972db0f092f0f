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

    monkeypatch.setattr(embed, "run", embed_kit.run_here)


@pytest.fixture
def passed():
    return embed_kit.passed
