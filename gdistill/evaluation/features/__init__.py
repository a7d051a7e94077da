"""Feature networks, which map pictures to features for Fréchet distances and other metrics.

`extractors` gives every feature network the same interface. `classifier` trains a small feature
network on a run's own training pictures. `weights` finds, writes and reads the weight files of
published feature networks.
This package may import, of gdistill, only models, workdir.storage and errors.
"""
