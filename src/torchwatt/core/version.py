"""The version, in one place in the package; a test compares it with the project file."""

__version__ = "0.1.0"
