"""Funnels of artifacts: which models in a row, keeping how many rows, and what that costs."""
