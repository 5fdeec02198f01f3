"""Runs of frames in tar files: what goes into which, writing them, reading them."""
