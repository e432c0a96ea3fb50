"""Metrics in Prometheus's text format, read as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str | tuple[str, str], ...]


def samples(text: str) -> dict[Sample, float]:
    """Return every value by the sample's name and its labels in their order."""
    families = text_string_to_metric_families(text)
    return {
        (one.name, *sorted(one.labels.items())): one.value
        for family in families
        for one in family.samples
    }
