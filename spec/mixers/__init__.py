"""Mixer families: each says its configuration, parameters, presets, reference and adjoint."""
