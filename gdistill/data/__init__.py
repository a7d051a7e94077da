"""Training data: pictures, captions and latents from disk, as batches of numpy arrays.

A source.Source is an indexable set of labelled pictures. One file makes sources of each kind:
digits, folder, records, tfds, captions, webdataset. pipeline.py loads a source by its name in the
recipe and deals the batches of every step. prepare.py writes records of one picture size,
latent_cache.py writes the cache of latents that latents.py reads, and images.py reads pictures to
evaluate. These modules may use core, errors, the recipe's settings and the storage of a workdir.
"""
