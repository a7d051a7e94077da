"""Samplers: (v_fn, z, cond, w, num_steps, noise[, keys]) -> x, one network call a step."""
