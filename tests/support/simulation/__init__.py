"""A deterministic simulation of all that drives experiments: processes, messages, clocks, a store, and faults."""
