"""The mathematics of diffusion: schedules, the process in v, guidance, weights of the loss.

Every function of this room is pure, works in float32 and may be called inside jit. A model is a
function `v_fn(z, logsnr, cond, w) -> v_hat`; the networks themselves are in `models`.
This room may use jax alone.
"""
