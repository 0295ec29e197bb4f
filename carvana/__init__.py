"""How it is done: one concept a file. Nothing in here imports a script of the folder above."""

import sys

__version__ = "1.0.0"

# Every script imports from this package first: older Pythons end here, before they meet a line
# that they cannot run. Only syntax that they can read is used in this file.
if sys.version_info < (3, 10):  # noqa: UP036  an older one does read this line
    sys.exit("error: Python 3.10 or newer is needed, this is " + sys.version.split()[0])
