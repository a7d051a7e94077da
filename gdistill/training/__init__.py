"""Training: makes the parts of a run from a recipe, and trains the rounds one after the other.

`assemble` makes the parts of a run once, for training, evaluation, --plan and encoding. `checks`
says whether the run is possible on this machine, `run` trains the unfinished rounds, `loop` is the
only training loop, and `step`, `gradient`, `losses` and `shapes` make the compiled train step. May
import, of gdistill, only core, stages, data, devices, frozen, process, recipe, rounds, workdir and
errors.
"""
