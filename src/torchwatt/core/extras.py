"""Which extra of torchwatt brings an optional package: the one place that the messages about missing packages use."""

from __future__ import annotations

from collections.abc import Mapping

# Name of the import -> extra, as in pyproject.toml.
EXTRA_OF: Mapping[str, str] = {
    "accelerate": "trainer",
    "duckdb": "fleet",
    "ecologits": "ecologits",
    "lightning": "lightning",
    "mlflow": "mlflow",
    "openpyxl": "xlsx",
    "opentelemetry": "otel",
    "prometheus_client": "prometheus",
    "pytorch_lightning": "lightning",
    "sklearn": "demo",
    "transformers": "trainer",
}


def install_command(package: str) -> str:
    """Return the command that installs a package, by the name of its import."""
    extra = EXTRA_OF.get(package)
    return f"pip install {package}" if extra is None else f"pip install 'torchwatt[{extra}]'"
