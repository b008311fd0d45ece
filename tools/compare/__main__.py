"""`python -m tools.compare`: `liquidnet compare`."""

import sys

from tools.cli.main import main

main(["compare", *sys.argv[1:]])
