"""Rounds: a round of a run trains one network and writes the network into a folder.

`plan` lists the rounds of a run, `network` turns settings and parameters into a function that
returns v, and `folder` reads the card.json and the parameters of a finished round.
Modules of rounds/ may import only core, models, recipe, workdir and errors of gdistill.
"""
