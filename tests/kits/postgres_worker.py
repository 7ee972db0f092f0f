"""One driver's record: some nodes with curves and a file, each item twice, as after a kill."""

import sys

from pipelines.lineage.writer import Writer
from pipelines.store.artifacts import Store

NODES, POINTS = 2, 1100  # more points than a call takes
BORN_MS = 1_700_000_000_000


def items(name: str):
    tags = {"ediffi.pipeline": name, "ediffi.execution": f"{name}-1", "ediffi.state": "running"}
    yield {"do": "open", "tags": tags, "time_ms": BORN_MS}
    for node in (f"train/base/E{i}" for i in range(NODES)):
        own = {**tags, "ediffi.node": node, "ediffi.fingerprint": f"{name}-{node}"}
        begin = {"node": node, "parent": "", "tags": own, "params": {"images": "12"}}
        yield {"do": "begin", **begin, "time_ms": BORN_MS}
        values = [("loss", 1 / (1 + i), BORN_MS + i, i) for i in range(POINTS)]
        yield {"do": "metrics", "node": node, "values": values}
        yield {
            "do": "finish",
            "node": node,
            "folder": "nodes/x",
            "fingerprint": f"{name}-{node}",
            "tags": {"ediffi.state": "done"},
            "values": [("final/loss", 0.5, BORN_MS, 0)],
            "files": [("note.png", "train")],
            "time_ms": BORN_MS + POINTS,
        }


if __name__ == "__main__":
    uri, name, root = sys.argv[1:]
    store = Store.open(root)
    store.write("nodes/x/note.png", name.encode())
    for _ in range(2):
        writer = Writer(uri, name, f"{name}-1", store)
        for item in items(name):
            writer.write(item)
