"""Converts published weights to Flax parameters of gdistill.models, and Flax parameters back.

Each family of networks has one file. The function `params_from` of a family's file converts
published arrays to Flax parameters; if the family can be exported, `state_from` converts Flax
parameters to published arrays. `files` reads and writes safetensors, `text` reads text encoders,
and `autoencoder` reads autoencoders. Modules of gdistill/convert may import models, core, recipe
and errors.
"""
