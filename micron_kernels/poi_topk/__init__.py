"""Patch of Interest: keep the k tokens of each row with the highest scores."""
