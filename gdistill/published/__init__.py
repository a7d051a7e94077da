"""Imports published networks, and exports finished rounds as folders that diffusers opens.

`importing` writes a published network as a finished round. `exporting` writes a finished round as a
folder that diffusers opens, and reads an exported folder. `teachers` finds out the kind of a
published network and reads the network as a `teacher.Teacher`; each family of networks has a file:
stable_diffusion, cin256, dit and adm. May import, of gdistill, only convert, drawing, errors,
frozen, models, process, recipe, rounds, training and workdir. Only gdistill.cli imports
gdistill.published.
"""
