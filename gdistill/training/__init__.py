"""Training: a run put together from its recipe, and its rounds trained one after the other.

`assemble` makes the parts of a run once; training, evaluation, --plan and encoding all start from
there. `checks` says whether the run is possible here, `run` trains what is not finished, `loop` is
the only training loop, and `step`, `gradient`, `losses` and `shapes` make its compiled step.
May use core, stages, data, devices, frozen, process, recipe, rounds, workdir and errors.
"""
