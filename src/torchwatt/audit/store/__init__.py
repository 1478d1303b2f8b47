"""The store of runs: a folder of bundles, with an index that can be rebuilt from them."""

from __future__ import annotations

from torchwatt.audit.store.folder import PROJECT, Store, default_store, project_name
from torchwatt.audit.store.index import StoredRun
from torchwatt.audit.store.sums import Group, shares, sums

__all__ = ["PROJECT", "Group", "Store", "StoredRun", "default_store", "project_name", "shares", "sums"]
