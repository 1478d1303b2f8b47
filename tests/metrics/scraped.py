"""What a scrape says, read by Prometheus' own parser."""

from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families


def parsed(text):
    """Return {(name, frozen labels): value}."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def scrape(exporter):
    with urlopen(exporter.url, timeout=5) as answer:  # noqa: S310  # our own address
        return parsed(answer.read().decode())


def of(samples, name, **labels):
    """Return the values of a metric with these labels."""
    return [value for (found, has), value in samples.items() if found == name and labels.items() <= dict(has).items()]
