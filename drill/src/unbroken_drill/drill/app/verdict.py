"""What makes the exit status 1: a judged app that shows its users more errors than it may, or does
not heal by itself.
"""

from __future__ import annotations

from unbroken_drill.drill.app.plan import Plan
from unbroken_drill.drill.app.results import AppResult


def breaches(row: AppResult, plan: Plan) -> list[str]:
    """What *row* breaks of the limits, a line each; nothing for a variant that is not judged."""
    if plan.judge and row.key not in plan.judge:
        return []
    if row.failure is not None:
        return [f"could not be measured: {row.failure}"]
    found = []
    failed = row.errors + row.hung
    if failed > plan.max_errors:
        hung = f", {row.hung} of them hung" if row.hung else ""
        found.append(f"{failed} of {row.requests} requests failed{hung}; {plan.max_errors} allowed")
    if row.never_back:
        found.append("requests still failed when the traffic ended")
    if row.ended is not None:
        found.append(f"the app ended by itself: {row.ended}")
    if row.needed_restart:
        helped = "which helped" if row.restart_helped else "which did not help"
        found.append(f"it did not heal by itself: it was restarted, {helped}")
    return found
