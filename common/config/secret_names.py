"""Names of what nobody but its owner is to read."""

import re

SECRET = re.compile(r"(^|_)(key|token|password|secret|credentials)$", re.IGNORECASE)
"""No message shows a value that is called so, and no text of a config may be."""
