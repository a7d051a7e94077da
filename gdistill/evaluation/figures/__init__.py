"""Figures from features: Fréchet distance, KID, inception score, precision and recall, CLIP score.

`measure` adds up the features of pictures batch by batch and computes a row of metrics from the
sums. Every other file of the package computes one metric.
May import, of gdistill, only models, evaluation.features, workdir.storage and errors.
"""
