"""Carbon factors with source and year, and the impacts computed from them; the user names the place."""

from __future__ import annotations

from torchwatt.carbon.plan import Asked, Plan, plan
from torchwatt.carbon.price import Priced, price
from torchwatt.carbon.resolve import HOW_TO_GET_GRAMS
from torchwatt.carbon.usage import Note, Subject, Usage

__all__ = ["HOW_TO_GET_GRAMS", "Asked", "Note", "Plan", "Priced", "Subject", "Usage", "plan", "price"]
