"""A leaky integrator for LiquidNet, as an example of a mixer from outside."""
