"""Frames of one clip: reading them, pairs of them, the face in them, and how much it moves."""
