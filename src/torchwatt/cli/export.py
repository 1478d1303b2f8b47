"""`torchwatt export DIR --to FORMAT`: writes a bundle in another tool's format."""

from __future__ import annotations

from collections.abc import Sequence

from torchwatt.audit.exports import export
from torchwatt.core.errors import ConfigError
from torchwatt.core.plain_text import printable


def export_bundles(
    directories: Sequence[str], to: str, out: str | None, pairs: Sequence[str], scenario: str
) -> int:  # fmt: skip
    """Write the file and print its path.

    Raises:
        BundleError: A bundle cannot be read, something is missing, or the target exists.
        ConfigError: A `--set` is not NAME=VALUE.
    """
    declared = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value:
            raise ConfigError(f"--set {pair}: give NAME=VALUE, such as organisation=ACME")
        declared[name] = value
    print(printable(str(export(directories, to, out, declared, scenario))))
    return 0
