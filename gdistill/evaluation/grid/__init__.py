"""The w x N grid of a run."""
