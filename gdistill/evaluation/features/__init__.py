"""Feature networks: pictures to features, in which distances between sets are measured.

`extractors` gives every network one interface, `classifier` trains a small one on the data of a
run, and `weights` finds the files of published ones.
May use models, workdir's storage and errors.
"""
