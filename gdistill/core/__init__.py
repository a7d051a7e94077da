"""The mathematics of diffusion: noise schedules, v-prediction, guidance and weights of the loss.

Every function of this package is pure, works in float32 and may be called inside jit. In
gdistill/core, a model is a function `v_fn(z, logsnr, cond, w) -> v_hat`; the networks themselves
are in gdistill/models.
gdistill/core may import no other package of gdistill.
"""
