"""Metrics: what each is called, its unit, axes, bounds and source; and the pure functions that compute them."""
