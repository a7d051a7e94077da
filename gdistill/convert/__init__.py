"""Converts published weights to Flax parameters of gdistill.models, and Flax parameters back.

Each family of networks has a file with tables of array names. Every such file has a function
`params_from` (published arrays to Flax parameters); families that can be exported also have
`state_from` (Flax parameters to published arrays). `files` reads and writes safetensors; `text`
and `autoencoder` read whole frozen networks. This room may use models, core, recipe and errors.
"""
