"""The frozen networks of latent diffusion: the autoencoder and the text encoder.

`networks` reads the frozen networks, `encode` runs the frozen networks once over the training
pictures, `copies` copies the frozen networks into the workdir, and `prompts` chooses the prompts
that a text-conditional network is measured with. This package may import, of gdistill, only
convert, core, data, devices, process, recipe, rounds, workdir and errors.
"""
