"""The proof of anybody's function: a NumPy reference against a PyTorch and a JAX function, with every gradient.

operation.py         what is given, checked and named
rounded_complex.py   NumPy arrays that round, and carry a derivative
truth.py             outputs, gradients and their bounds
backends.py          the functions in PyTorch and JAX
prove.py             problem after problem
result.py            what it came to: printed, written, raised
command.py           `python -m parity`
"""
