"""The first name of `python -m parity.suite.compiled.tpu`, kept so that scripts keep working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("parity.suite.compiled.tpu", run_name="__main__", alter_sys=True)
