"""Imports published networks, and exports finished rounds as folders that diffusers opens.

`importing` writes a published network as a finished round. `exporting` writes a finished round as a
folder that diffusers opens, and reads an exported folder. `teachers` finds out the kind of a
published network and reads the network as a `teacher.Teacher`; the readers of the families of
networks are in stable_diffusion.py, cin256.py, dit.py and adm.py. Modules of published/ may import
only convert, drawing, errors, frozen, models, process, recipe, rounds, training and workdir of
gdistill. Only gdistill.cli imports gdistill.published.
"""
