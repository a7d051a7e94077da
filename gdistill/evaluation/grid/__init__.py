"""Evaluates a run's grid; a cell of the grid is one model, sampler, number of steps N and w.

`run` evaluates a grid, `cells` lists and names the cells, `draw_and_measure` samples and measures
the missing cells, `cell_store` stores pictures and measurements in the workdir, `real_images`
measures real images of the data set, and `rows` makes the rows of report/metrics.json.
This package may import data, devices, drawing, frozen, process, recipe, rounds, training, workdir,
errors and the rest of evaluation.
"""
