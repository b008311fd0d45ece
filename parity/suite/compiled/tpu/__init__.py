"""The TPU programs, compiled by the TPU's own compiler where there is no TPU, against a checked-in budget."""
