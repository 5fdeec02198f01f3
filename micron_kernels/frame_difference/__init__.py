"""The mean difference of two frames, patch by patch."""
