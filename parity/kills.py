"""The first name of `python -m parity.suite.runs.crash_resume`, kept so that scripts keep working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("parity.suite.runs.crash_resume", run_name="__main__", alter_sys=True)
