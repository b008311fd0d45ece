"""`liquidnet parity`: the sweep and its report."""
