"""Figures from features: Fréchet distance, KID, inception score, precision and recall, CLIP score.

`measure` adds up the features of pictures batch by batch and computes a row of figures from the
sums. Every other file of the package computes one figure.
The package may import models, evaluation.features, workdir.storage and errors.
"""
