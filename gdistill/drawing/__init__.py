"""Finished rounds draw pictures: sampling, editing, inpainting and style transfer.

`sampling` compiles a sampler of one round, and `editor` compiles the functions of `edit`, `inpaint`
and `style_transfer`, which are pure functions of a model. `sheets` turns pixels into PNG files.
May import, of gdistill, only core, devices, errors, frozen, process, rounds, samplers and workdir.
"""
