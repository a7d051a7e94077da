"""Networks as Flax Linen modules: they know the shapes of their inputs and outputs, not diffusion.

Denoisers: `unet` (pixels), `latent_unet` (Stable Diffusion), `dit`. Frozen networks: `vae`, `clip`,
`bert`. Feature networks for evaluation: `inception`, `efficientnet`, `clip`. This room may use jax,
flax, core and errors.
"""
