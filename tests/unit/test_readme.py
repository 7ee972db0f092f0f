"""What the README says is so: its spec is sound, its links lead somewhere, its verbs exist."""

import re

import yaml
from paths import ROOT

from pipelines import cli
from pipelines.planning.stage_networks import config_of
from pipelines.spec import pipeline as spec

README = (ROOT / "README.md").read_text()


def test_its_spec_is_sound(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    whole, network, part, measures, workers, promotion, adaptive, cluster = blocks
    (tmp_path / "mine.yaml").write_text(whole)
    assert list(spec.load(tmp_path / "mine.yaml").stages) == ["base", "sr256"]
    spec.Spec.model_validate(yaml.safe_load(whole) | yaml.safe_load(part))
    raw, own = yaml.safe_load(whole), yaml.safe_load(network)["stages"]["base"]
    base = raw["stages"]["base"]
    base |= {"network": own["network"], "training": base["training"] | own["training"]}
    base["experts"] |= own["experts"]
    config_of(spec.Spec.model_validate(raw), "base")
    raw, more = yaml.safe_load(whole), yaml.safe_load(workers)
    raw["stages"]["base"] |= more.pop("stages")["base"]
    spec.Spec.model_validate(raw | more)
    for block in (measures, promotion, cluster):
        spec.Spec.model_validate(yaml.safe_load(whole) | yaml.safe_load(block))
    grown = yaml.safe_load(whole)
    grown["stages"]["base"] |= yaml.safe_load(adaptive)
    del grown["stages"]["base"]["ensemble"]
    grown["stages"]["base"]["training"]["batch"] = 16
    spec.Spec.model_validate(grown)


def test_its_links_and_pictures_are_there():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_its_commands_exist():
    verbs = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    verbs |= {group.name for group in cli.app.registered_groups}
    assert set(re.findall(r"^ediffi (\w+)", README, flags=re.M)) <= verbs
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.M))
    used = set(re.findall(r"`make ([a-z]+)`|^make ([a-z]+)", README, flags=re.M))
    assert {a or b for a, b in used} <= targets


def test_the_rooms_it_shows_are_those_there_are():
    shown = set(re.findall(r"^(\w+)/  ", README, flags=re.M))
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert rooms | {"infra", "notebooks", "tests"} == shown
