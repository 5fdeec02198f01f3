"""Commands of ``micron`` that have a module of their own."""
