"""Carbon factors with source and year, and the impacts computed from them; the user names the place."""

from __future__ import annotations

from torchwatt.carbon.impacts import PricedSubject, PricingNote, RunUsage
from torchwatt.carbon.pricing import PricedImpacts, price_run
from torchwatt.carbon.pricing_plan import CarbonOptions, PricingPlan, make_plan
from torchwatt.carbon.region_lookup import HOW_TO_GET_GRAMS

__all__ = [
    "HOW_TO_GET_GRAMS",
    "CarbonOptions",
    "PricedImpacts",
    "PricedSubject",
    "PricingNote",
    "PricingPlan",
    "RunUsage",
    "make_plan",
    "price_run",
]
