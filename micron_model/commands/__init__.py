"""Commands of ``micron``, each a dataclass whose fields are its options."""

import os

# Of a notebook from which a command is run: matplotlib, which asks for it when it is imported, may not have it here. No
# command opens a window.
os.environ.pop("MPLBACKEND", None)
