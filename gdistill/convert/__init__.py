"""Converts names and settings of published weights to ours and back: pure tables, a family a file.

Converters hand out `params_from` (published arrays to Flax parameters) and, where there is a way
back, `state_from`. `files` reads and writes safetensors; `text` and `autoencoder` read whole frozen
networks. This room may use models, core, recipe and errors.
"""
