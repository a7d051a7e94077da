"""Networks as Flax Linen modules; samplers, losses and guidance are in other packages.

The denoisers are `unet` (pixels), `latent_unet` (Stable Diffusion) and `dit`. The frozen networks
are `vae` (autoencoders) and the text encoders `clip` and `bert`. Evaluation takes features from
`inception`, `efficientnet` and `clip`. This package may import, of gdistill, only core and errors.
"""
