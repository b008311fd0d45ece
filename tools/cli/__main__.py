"""`python -m tools.cli`: the command line."""

from tools.cli.main import main

main()
