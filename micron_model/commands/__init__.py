"""Commands of ``micron``, each a dataclass whose fields are its options."""
