"""The first name of `python -m parity.suite.soak`, kept so that scripts keep working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("parity.suite.soak", run_name="__main__", alter_sys=True)
