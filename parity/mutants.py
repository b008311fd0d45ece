"""The first name of `python -m parity.suite.mutants`, kept so that scripts keep working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("parity.suite.mutants", run_name="__main__", alter_sys=True)
