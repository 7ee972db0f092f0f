"""Every metric arrives where it is read, with the labels that it is declared with."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.runs.ray_meters import RayMeters
from pipelines.serving.meters import METRICS, LocalMeters


def fill(meters):
    """Give every metric a value."""
    for name, metric in METRICS.items():
        labels = dict.fromkeys(metric.labels, "x")
        if metric.kind == "counter":
            meters.add(name, **labels)
        elif metric.kind == "gauge":
            meters.set(name, 3)
        else:
            meters.observe(name, 0.2, **labels)


def test_prometheus_reads_all_metrics():
    meters = LocalMeters()
    fill(meters)
    found = {family.name: family for family in text_string_to_metric_families(meters.text())}
    assert set(METRICS) <= set(found)
    for name, metric in METRICS.items():
        assert found[name].type == metric.kind and found[name].documentation == metric.about
        labels = {label for sample in found[name].samples for label in sample.labels} - {"le"}
        assert labels == set(metric.labels)


def test_two_engines_of_one_process_count_apart():
    one, other = LocalMeters(), LocalMeters()
    one.set("ediffi_serve_queue_pictures", 7)
    assert "ediffi_serve_queue_pictures 7.0" in one.text()
    assert "ediffi_serve_queue_pictures 0.0" in other.text()


@pytest.mark.slow
def test_ray_takes_all_metrics():
    fill(RayMeters(METRICS))
    with pytest.raises(ValueError):
        RayMeters(METRICS).add("ediffi_serve_pictures", colour="red")
