"""Finished rounds draw pictures: sampling, editing, inpainting and style transfer.

`sampling` compiles a sampler of one round. `editor` compiles the pure functions of the modules
`edit`, `inpaint` and `style_transfer` for one round. `sheets` turns pixels into PNG files.
Of gdistill, the package `drawing` may import only core, devices, errors, frozen, process, rounds,
samplers and workdir.
"""
