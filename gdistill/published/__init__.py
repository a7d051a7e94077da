"""Published networks in; finished rounds out to diffusers, and back.

`importing` writes a published network as a finished round. `exporting` writes a finished round as a
folder that diffusers opens, and reads such a folder. `teachers` tells the kind of a source and
returns a `teacher.Teacher`, with one file for each family: stable_diffusion, cin256, dit and adm.
This room may use convert, drawing, errors, frozen, models, process, recipe, rounds, training and
workdir. Only cli uses this room.
"""
