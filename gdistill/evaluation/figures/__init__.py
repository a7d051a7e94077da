"""Metrics from features: Fréchet distance, KID, inception score, precision and recall, CLIP score.

`measure` adds up the features of pictures batch by batch and computes a row of metrics from the
sums. Each other file computes one kind of metric, such as kernel_distance.py the KID.
This package may import, of gdistill, only models, evaluation.features, workdir.storage and errors.
"""
