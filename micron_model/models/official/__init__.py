"""Checkpoints in the layout in which a network's authors published them."""
