"""A round: one step of a run's plan, which trains one network into a folder of its own.

`plan` lists the rounds of a run, `network` turns settings and parameters into a function that
returns v, and `folder` reads a finished round with its parameters.
May import, of gdistill, only core, models, recipe, workdir and errors.
"""
