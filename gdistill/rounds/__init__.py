"""What a round is: one training run of a plan, with a network, in a folder of its own.

`plan` lists the rounds of a run, `network` turns settings and parameters into a function that
returns v, and `folder` reads a finished round with its parameters.
May use core, models, recipe, workdir and errors.
"""
