"""Telemetry of a run: gathered on the device, copied once per logging interval, kept in append-only Parquet chunks."""
