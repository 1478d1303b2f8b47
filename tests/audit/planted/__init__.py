"""Honest bundles of every source, and a forger who knows the schema: what `verify` must and must not find."""
