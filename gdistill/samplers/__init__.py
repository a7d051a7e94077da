"""Samplers: functions (v_fn, z, cond, w, num_steps, noise[, keys]) -> x.

DDIM and its inversion, ancestral sampling, DPM-Solver++(2M), the paper's stochastic sampler, and
the noise of an image. `noise` is the schedule; each step of a sampler calls v_fn once.
May use `core`.
"""
