"""A deterministic simulation of everything that drives experiments: processes, messages, clocks, a store, and faults."""
