"""Measurements that end in ratios taken within one run: `python -m benchmarks.<name> --json`."""
