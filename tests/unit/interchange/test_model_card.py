"""The model card says what the store knows, and says so where it knows nothing."""

import json

import ensemble_kit
import pytest
import yaml

from pipelines.interchange.export import Options, export
from pipelines.interchange.model_card import table
from pipelines.store.artifacts import Store

PROMOTION = {
    "inputs": {
        "evaluation/base": {"node": "evaluate/base/ensemble", "fingerprint": "e1"},
        "evaluation/sr16": {"node": "evaluate/sr16/ensemble", "fingerprint": "gone"},
    }
}
EVALUATION = {
    "metrics": {
        "things": 0.75,
        "things_ci95": 0.125,
        "things_pictures": 64,
        "shuffled/things": 0.25,
        "real/things": 1.0,
        "untrained/things": 0.5,
        "val_loss": 0.5,
        "val_loss_ci95": 0.01,
        "val_loss/E1_0": 0.125,
    }
}
TRAINING = {
    "batch": 16,
    "learning_rate": 0.002,
    "schedule": "cosine",
    "weight_decay": 0.01,
    "precision": "float32",
    "ema_halflife_images": 2000,
}


def read_card(folder):
    """The metadata, and the text of each section by its heading."""
    _, metadata, body = (folder / "README.md").read_text().split("---\n", 2)
    parts = body.split("\n## ")[1:]
    return yaml.safe_load(metadata), {p.partition("\n")[0]: p for p in parts}


def rows(section):
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def card(store, manifest, tmp_path_factory):
    """The card of an ensemble whose store has the manifests of all nodes but one evaluation."""
    own = Store.at(str(tmp_path_factory.mktemp("store")))
    d = json.loads(manifest.read_text()) | {"store": own.root}
    for slot, weights in d["weights"].items():
        path = f"nodes/train/{slot}-f/ema.safetensors"
        own.write(path, store.read(weights["path"]))
        weights["path"] = path
        parent = {} if slot == "sr16/E0_0" else {"node": "train/base/E0_0", "fingerprint": "f"}
        training = {"settings": {"training": TRAINING}, "info": {"parameters": 12345}}
        training["inputs"] = {"parent": parent} if parent else {}
        own.write_json(f"nodes/train/{slot}-f/manifest.json", training)
    root = {"expert": "E0_0", "interval": [0.0, 1.0], "images": 4096}
    own.write_json(
        "nodes/train/base/E0_0-f/manifest.json",
        {"settings": {**root, "training": TRAINING}, "inputs": {}, "info": {}},
    )
    d["encoders_folder"] = store.full("nodes/encoders/tiny")
    counts = {"rows": 4800, "filtered": 100, "quarantined": 7, "repeated": 3}
    own.write_json("nodes/embed/train-f/manifest.json", {"metrics": counts, "inputs": {}})
    d["data"] = {"train": {"folder": "nodes/embed/train-f"}, "validation": {"folder": "nodes/gone"}}
    for role in ("t5", "clip"):
        for file, _ in store.files(f"nodes/encoders/tiny/{role}").items():
            data = store.read(f"nodes/encoders/tiny/{role}/{file}")
            own.write(f"nodes/encoders/tiny/{role}/{file}", data)
    d["encoders_folder"] = "nodes/encoders/tiny"
    own.write_json(f"{ensemble_kit.FOLDER}/ensemble.json", d)
    own.write_json(f"{ensemble_kit.FOLDER}/manifest.json", PROMOTION)
    own.write_json("nodes/evaluate/base/ensemble-e1/manifest.json", EVALUATION)
    folder = tmp_path_factory.mktemp("out") / "model"
    path = own.local(f"{ensemble_kit.FOLDER}/ensemble.json")
    export(path, folder, Options(dtype="bfloat16", license="cc-by-4.0"))
    return read_card(folder)


def test_the_metadata_is_the_hub_s(card):
    metadata, _ = card
    assert metadata["license"] == "cc-by-4.0" and metadata["library_name"] == "diffusers"
    assert metadata["pipeline_tag"] == "text-to-image" and "diffusers" in metadata["tags"]


def test_the_tree_has_intervals_images_and_parents(card):
    head, _, high, low, root, *rest = rows(card[1]["Experts"])
    assert head == ["expert", "noise levels", "share of p(σ)", "trained on images", "starts from"]
    assert high[:3] == ["**E1_1**", "σ ≥ 0.3012", "50 %"]
    assert low[:3] == ["**E1_0**", "σ < 0.3012", "50 %"]
    assert root == ["E0_0", "all σ", "100 %", "4,096", "–"]
    assert rest[-1][:3] == ["**E0_0**", "all σ", "100 %"]


def test_the_data_are_counted_and_unknown_licenses_said_to_be(card):
    section = card[1]["Data"]
    [_, _, train] = rows(section)
    assert train == ["train", "the trainer's own pairs", "4,800", "100", "7", "3"]
    assert "no license of the trainer's own pairs: unknown here" in section
    assert "`t5` (trained by ediffi on this data)" in section


def test_the_measures_have_their_intervals_counts_and_controls(card):
    section = card[1]["Evaluation"]
    head, _, things, loss = rows(section)
    assert head == ["measure", "ensemble", "captions shuffled", "real pictures", "N"]
    assert things == ["things ↑", "0.750 ±0.125", "0.250", "1.000", "64"]
    assert loss == ["val_loss ↓", "0.500 ±0.010", "–", "–", "–"]
    assert "The weights were float32, not bfloat16 as here." in section
    assert "sr16" not in section  # its evaluation is gone


def test_training_and_sampling_are_as_they_were(card):
    training = rows(card[1]["Training"])[2]
    assert training == [
        *("base/E1_1", "12,345", "16", "0.002, cosine", "0.01", "float32", "2,000"),
    ]
    settings = {row[0]: row[1:] for row in rows(card[1]["Sampling defaults"])}
    assert settings["`steps`"] == ["4", "4"] and settings["`guidance`"] == ["2", "0"]
    assert "`churn`" not in settings  # set nowhere


def test_what_the_store_does_not_know_is_said_to_be_unknown(exported):
    metadata, sections = read_card(exported)
    assert metadata["license"] == "other"
    assert "was not given at the export (`--license`)" in sections["License"]
    assert "no evaluation of this ensemble" in sections["Evaluation"]
    assert "no longer has the data" in sections["Data"]
    assert "no longer has the settings of the trainings" in sections["Training"]
    for heading in ("Use", "Limits, bias and misuse", "Papers"):
        assert len(sections[heading]) > 100


@pytest.mark.parametrize(
    ("maker", "credits"),
    [
        ("emoji-scenes", ("Twemoji © Twitter", "CC BY 4.0")),
        ("fashion-mnist", ("© 2017 Zalando SE", "MIT License")),
    ],
)
def test_the_card_names_who_made_generated_data(maker, credits, store, manifest, tmp_path):
    d = json.loads(manifest.read_text())
    made = {"metrics": {"rows": 8, "filtered": 0, "quarantined": 0, "repeated": 0}}
    made["inputs"] = {"data": {"node": "data/train", "fingerprint": "f"}}
    store.write_json("nodes/embed/demo/manifest.json", made)
    store.write_json("nodes/data/train-f/manifest.json", {"settings": {"make": maker}})
    d["data"] = {"train": {"folder": "nodes/embed/demo"}}
    (tmp_path / "ensemble.json").write_text(json.dumps(d))
    export(tmp_path / "ensemble.json", tmp_path / "model")
    _, sections = read_card(tmp_path / "model")
    assert f"made by ediffi (`{maker}`)" in sections["Data"]
    assert all(words in sections["Data"] for words in credits)
    assert "unknown here" not in sections["Data"] and "](packages" not in sections["Data"]


def test_the_python_on_the_card_is_valid(exported):
    text = (exported / "README.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) == 3
    for block in blocks:
        compile(block, "README.md", "exec")


def test_bars_in_cells_are_escaped():
    assert table(("a",), [("b|c",)]).splitlines()[-1] == "| b\\|c |"
