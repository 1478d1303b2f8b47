import pytest

from torchwatt.carbon import second


@pytest.fixture(autouse=True)
def one_source(request, monkeypatch):
    """Leave the second source out, installed or not, except where a test is about it."""
    if not request.module.__name__.endswith("test_carbon_second"):
        monkeypatch.setattr(second, "installed", lambda: "")
