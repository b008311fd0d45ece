"""The first name of `python -m tools.bench.gpu_check`, kept so that scripts keep working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("tools.bench.gpu_check", run_name="__main__", alter_sys=True)
