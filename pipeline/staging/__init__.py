"""Dementia stages from T1 slices: reading, plausibility, the stager, and what it writes."""
