"""The proof: both backends against one float64 reference, within derived bounds."""
