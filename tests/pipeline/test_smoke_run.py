"""The smoke pipeline from the command line: what it leaves in the store, and what the verbs say."""

import hashlib
import json

import pytest
from kit import SMOKE, call, shards_of, strict_json, versions
from PIL import Image

NODES = {
    "data/train",
    "data/validation",
    "encoders/tiny",
    "embed/train",
    "embed/validation",
    "metric/emoji-scenes",
    "train/base/E0_0",
    "train/base/E1_1",
    "train/base/E1_0",
    "train/base/single",
    "adopt/base",
    "evaluate/base/ensemble",
    "evaluate/base/root",
    "evaluate/base/single",
    "compare/base",
    "train/sr32/E0_0",
    "adopt/sr32",
    "evaluate/sr32/ensemble",
    "promote/smoke",
}


@pytest.fixture
def say(smoke, capsys):
    """``say(verb, …)`` → what the command prints about the shared store."""

    def run(*args):
        capsys.readouterr()
        assert call(*args, "--storage", smoke.store) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def test_every_node_has_a_manifest_that_its_files_match(smoke):
    manifests = list(smoke.store.glob("nodes/**/manifest.json"))
    assert len(manifests) == len(NODES)
    for path in manifests:
        manifest = strict_json(path.read_text())
        there = {str(f.relative_to(path.parent)) for f in path.parent.rglob("*") if f.is_file()}
        extra = there - manifest["files"].keys() - {"manifest.json", "progress.json"}
        assert (manifest["files"] or manifest["kind"] in ("adopt", "compare")) and not extra, path
        for name, entry in manifest["files"].items():
            data = (path.parent / name).read_bytes()
            assert len(data) == entry["bytes"]
            assert hashlib.sha256(data).hexdigest() == entry["sha256"], path.parent / name


def test_embedded_shards_are_those_that_the_versions_list(smoke):
    """Each with the row that says it is done; both splits, of one recipe, share a pool."""
    import pyarrow.parquet as pq

    listed = [row for v in versions(smoke.store) for row in pq.read_table(v).to_pylist()]
    assert len(listed) == 5 and sum(row["rows"] for row in listed) == 64 + 32
    assert len({row["path"].rpartition("/")[0] for row in listed}) == 1
    files = {smoke.store / s for v in versions(smoke.store) for s in shards_of(v)}
    there = {p for p in smoke.store.glob("embeddings/**/*") if p.is_file()}
    endings = (".parquet", ".json", ".keys", ".rows")
    assert there == {f.with_suffix(ending) for f in files for ending in endings}
    for row in listed:
        data = (smoke.store / row["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"])


def test_manifests_name_the_inputs_they_were_made_from(smoke):
    child, parent = smoke.manifest("train/base/E1_1"), smoke.manifest("train/base/E0_0")
    assert child["inputs"]["parent"] == {
        "node": "train/base/E0_0",
        "fingerprint": parent["fingerprint"],
    }
    ensemble = strict_json((smoke.folder("promote/smoke") / "ensemble.json").read_text())
    entry = ensemble["weights"]["base/E1_1"]
    assert entry["sha256"] == child["info"]["weights_sha256"]


def test_the_first_run_says_what_it_did(smoke):
    lines = smoke.first.splitlines()
    for node in NODES:
        assert any(f"{node} started" in line for line in lines)
        assert any(f"{node} done in" in line for line in lines)
    assert "gain" in smoke.first and "ensemble.json" in smoke.first


def test_the_second_run_reuses_every_node_and_says_why(smoke):
    """It ran with an address of Ray that leads nowhere, so it started none."""
    assert "starting Ray" in smoke.first and "starting Ray" not in smoke.second
    reused = [line for line in smoke.second.splitlines() if " reused: " in line]
    assert len(reused) == len(NODES)
    for node in NODES:
        [line] = [x for x in reused if f"] {node} reused" in x]
        fingerprint = smoke.manifest(node)["fingerprint"]
        assert f"settings and inputs unchanged ({fingerprint[:8]})" in line


def test_plan_status_and_tree_agree(smoke, say):
    """Three views of one store, as JSON that any program reads."""
    plan = strict_json(say("plan", SMOKE, "--json"))
    status = strict_json(say("status", SMOKE, "--json"))
    tree = strict_json(say("tree", "--json"))

    nodes = {n["id"]: n for n in plan["nodes"]}
    assert nodes.keys() == status["nodes"].keys() == NODES
    assert all(n["cached"] for n in nodes.values())
    assert status["state"] == tree["state"] == "done"
    assert status["fingerprint"] == plan["fingerprint"] and tree["execution"] == status["id"]
    for node, record in status["nodes"].items():
        assert record["state"] == "reused"
        assert record["folder"] == nodes[node]["folder"]
        assert (smoke.store / record["folder"] / "manifest.json").is_file()

    experts = tree["stages"]["base"]["experts"]
    assert {f"train/base/{e}" for e in experts} == {n for n in NODES if n.startswith("train/base")}
    for name, expert in experts.items():
        manifest = smoke.manifest(f"train/base/{name}")
        sigma = {k: expert[k] for k in ("sigma_lo", "sigma_hi")}
        assert sigma == nodes[f"train/base/{name}"]["sigma"]
        assert expert["metrics"] == manifest["metrics"]
        assert expert["weights_sha256"] == manifest["info"]["weights_sha256"]
        assert expert["parent"] == (None if name == "E0_0" else "E0_0")
    assert experts["E1_1"]["sigma_lo"] == experts["E1_0"]["sigma_hi"]
    for group, metrics in tree["stages"]["base"]["evaluations"].items():
        assert metrics == smoke.manifest(f"evaluate/base/{group}")["metrics"]


def test_texts_for_people_name_every_node_and_expert(say):
    plan, status, tree = say("plan", SMOKE), say("status"), say("tree")
    assert all(node in plan and node in status for node in NODES)
    assert "0 to run, 19 reused; 0 images to train" in plan
    assert all(expert in tree for expert in ("E0_0", "E1_1", "E1_0", "single"))


def test_an_earlier_run_can_still_be_shown(smoke, say):
    first = smoke.first.split()[2].rstrip(":")
    tree = strict_json(say("tree", first, "--json"))
    assert tree["execution"] == first
    assert {e["state"] for e in tree["stages"]["base"]["experts"].values()} == {"done"}


def test_the_tree_as_a_page_has_pictures_and_names_its_runs(smoke, say, tmp_path):
    page = tmp_path / "lineage.html"
    assert str(page) in say("tree", "--html", page)
    text, status = page.read_text(), strict_json(say("status", SMOKE, "--json"))
    assert status["id"] in text and text.count("data:image/jpeg;base64,") >= 3
    for expert in ("E0_0", "E1_1", "E1_0", "single"):
        assert status["tracking"]["nodes"][f"train/base/{expert}"][:8] in text


def test_a_run_of_reused_nodes_compares_equal(smoke, say):
    first = smoke.first.split()[2].rstrip(":")
    second = strict_json(say("status", SMOKE, "--json"))["id"]
    said = say("tree", "--compare", first, second)
    assert said.count("same weights") == 5
    found = strict_json(say("tree", "--compare", first, second, "--json"))
    for stage in found["stages"].values():
        for expert in stage["experts"].values():
            assert not any(expert["difference"].values())


def test_sample_draws_the_same_pictures_for_the_same_seed(say, tmp_path):
    def draw(name, *options):
        out = tmp_path / name
        say("sample", "smoke", "a frog", "a rocket", "-n", 3, "-o", out, "--no-captions", *options)
        return out.read_bytes()

    first = draw("a.png", "--seed", 5, "--scale", 2)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (3 * 68 + 4, 2 * 68 + 4)  # 32 × 2, and 4 of gap around each
    assert draw("b.png", "--seed", 5, "--scale", 2) == first
    assert draw("c.png", "--seed", 6, "--scale", 2) != first
    assert draw("d.png", "--seed", 5, "--scale", 4, "--stage", "base") != first
    with Image.open(tmp_path / "d.png") as sheet:
        assert sheet.size == (3 * 68 + 4, 2 * 68 + 4)
    paint = ("--paint", "a frog=0,0,0.5,1")
    painted = draw("e.png", "--seed", 5, "--scale", 2, *paint)
    assert painted not in (first, draw("f.png", "--seed", 5, *paint, "--strength", 0))
    assert draw("g.png", "--seed", 5, "--scale", 2, "--style", tmp_path / "a.png") != first


def test_sampling_an_exported_ensemble_by_path_and_by_name_is_the_same(smoke, say, tmp_path):
    promoted = smoke.folder("promote/smoke") / "ensemble.json"
    assert json.loads(promoted.read_text())["store"] == str(smoke.store)
    for name, model in (("path.png", promoted), ("name.png", "smoke")):
        say("sample", model, "a frog", "-o", tmp_path / name)
    assert (tmp_path / "path.png").read_bytes() == (tmp_path / "name.png").read_bytes()
