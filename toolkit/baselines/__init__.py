"""Baselines: what a plain net, a linear classifier or nearest neighbours make of the same images."""
