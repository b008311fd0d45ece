"""Python imports this where the directory is on its path: coverage begins with each process."""

import os

if "COVERAGE_PROCESS_START" in os.environ:
    import coverage

    coverage.process_startup()
