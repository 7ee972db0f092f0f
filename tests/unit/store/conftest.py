"""Small versions of a data set, in a folder of their own."""

import pytest
from tiny_shards import header, made_rows

from pipelines.store.artifacts import Store, sha256
from pipelines.store.dataset import Version
from pipelines.store.shards import write


@pytest.fixture
def store(tmp_path):
    return Store.at(str(tmp_path))


@pytest.fixture
def make_version(store):
    """``make_version([rows, …])`` → a version whose shards are in the pool."""

    def make(parts, head=None, folder="nodes/embed/v1", store=store):
        entries, head = [], head or header()
        for i, rows in enumerate(parts):
            written = write(rows, head)
            data = written.data
            path = f"embeddings/tiny/{i:04d}.parquet"
            store.write(path, data)
            entries.append(
                {"name": f"{i:04d}", "path": path, "bytes": len(data), "sha256": sha256(data)}
                | written.record
            )
        return Version.write(store, folder, entries, head)

    return make


@pytest.fixture
def version(make_version):
    """Five shards of 11, 3, 8, 1 and 14 rows; some without a picture of 8."""
    counts, small = (11, 3, 8, 1, 14), ((0, 4), (1,), (), (), (3, 4, 5))
    return make_version(
        [
            made_rows(n, name=str(s), small=few, seed=s)
            for s, (n, few) in enumerate(zip(counts, small))
        ]
    )
