"""Feature networks, which map pictures to features for Fréchet distances and other figures.

`extractors` gives every feature network the same interface. `classifier` trains a small feature
network on the data of a run. `weights` finds the weight files of published feature networks.
May use models, workdir's storage and errors.
"""
