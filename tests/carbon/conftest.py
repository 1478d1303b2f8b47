import pytest

from torchwatt.carbon import ecologits


@pytest.fixture(autouse=True)
def one_source(request, monkeypatch):
    """Leave the second source out, installed or not, except where a test is about it."""
    if not request.module.__name__.endswith(("test_ecologits", "test_token_estimator")):
        monkeypatch.setattr(ecologits, "installed_version", lambda: "")
