"""`python -m parity FILE.py:OPERATION`: prove a function of anybody's; docs/guide/prove_your_port.md."""

import runpy

if __name__ == "__main__":
    runpy.run_module("parity.proof.functions.command", run_name="__main__", alter_sys=True)
