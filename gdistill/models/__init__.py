"""Networks as Flax Linen modules: they know the shapes of their inputs and outputs, not diffusion.

The denoisers are `unet` (pixels), `latent_unet` (Stable Diffusion) and `dit`. The frozen networks
are `vae` (autoencoders) and the text encoders `clip` and `bert`. Evaluation takes features from
`inception`, `efficientnet` and `clip`. May import, of gdistill, only core and errors.
"""
