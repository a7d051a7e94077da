"""Training data: pictures, captions and latents from disk, as batches of numpy arrays.

A source.Source is a set of labelled pictures, read by index; digits, folder, records, tfds,
captions and webdataset each make a Source. pipeline.py loads the source that the recipe's data.name
selects, and makes the batch of any training step. listings.py lists folders and archives, looked.py
remembers what was found in large folders. prepare.py writes pictures of one size as ArrayRecord
files. latent_cache.py writes the cache of latents, which latents.py reads. images.py reads pictures
to evaluate. gdistill/data may use core, errors, recipe.settings and workdir.storage.
"""
