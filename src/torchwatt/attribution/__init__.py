"""Attribute metered energy to layers, phases and ranks."""
