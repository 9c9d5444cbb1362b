"""Use cases: plan, run lanes, verify, report."""
