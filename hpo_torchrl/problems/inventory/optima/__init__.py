"""Exact optima, bounds and best rules of inventory problems."""
