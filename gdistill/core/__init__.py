"""The mathematics of diffusion: schedules, the process in v, guidance, weights of the loss.

Every function of this package is pure, works in float32 and may be called inside jit. A model is a
function `v_fn(z, logsnr, cond, w) -> v_hat`; the networks themselves are in `models`.
May import no other package of gdistill.
"""
