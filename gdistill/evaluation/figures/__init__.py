"""Figures from features: Fréchet distance, KID, inception score, precision and recall, CLIP score.

`measure` sums up the features of pictures batch by batch and turns the sums into a row of figures;
every other file is one figure.
May use models, the sibling room features, workdir's storage and errors.
"""
