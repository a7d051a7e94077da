"""Samplers: functions (v_fn, z, cond, w, num_steps, noise[, keys]) -> x.

The samplers are DDIM with its inversion, ancestral sampling, DPM-Solver++(2M) and the paper's
stochastic sampler. The argument `noise` is the noise schedule; each step of a sampler calls v_fn
once. Modules of samplers/ may import only core of gdistill.
"""
