"""Preflight: what is wrong with data, inputs, network or learning, before hours are spent on it."""
