"""Measurement: eager against replay, in one process, on the same requests."""
