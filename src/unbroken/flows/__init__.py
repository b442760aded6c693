"""Slow paths, written once as generators of steps; each pool runs the steps its own way."""
