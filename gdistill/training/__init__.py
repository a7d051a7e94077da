"""Training: builds a run from a recipe, and trains the run's rounds one after the other.

`assemble` builds a run's mesh, networks and data for training, evaluation, --plan and encoding.
`checks` tells whether this machine can do a run, `run` trains the unfinished rounds, `loop` is the
only training loop, and `step`, `gradient`, `losses` and `shapes` make the compiled train step. The
package may import, of gdistill, only core, stages, data, devices, frozen, process, recipe, rounds,
workdir and errors.
"""
