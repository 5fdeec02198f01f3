"""The networks, each a page to read beside its paper."""
