"""Methods that decide which channels stay: each ends in a `PruningPlan`."""
