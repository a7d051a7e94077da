"""The mathematics of diffusion: schedules, the process in v, guidance, weights of the loss.

Every function is pure, works in float32 and may be called inside jit. A model is a function
`v_fn(z, logsnr, cond, w) -> v_hat`; there are no networks in this package.
May use jax alone.
"""
