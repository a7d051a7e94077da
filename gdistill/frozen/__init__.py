"""The frozen networks around a latent network: autoencoder and text encoder.

`networks` reads these networks, `encode` runs them once over the training pictures, `copies` keeps
them in the workdir, and `prompts` chooses the prompts that a text network is measured with.
May use convert, core, data, devices, process, recipe, rounds, workdir and errors.
"""
