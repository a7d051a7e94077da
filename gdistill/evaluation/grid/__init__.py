"""The grid of a run: its cells, each one model, sampler, N steps and w, sampled and measured.

`run` evaluates a whole grid, `cells` lists and names the cells, `draw_and_measure` samples and
measures the missing cells, `cell_store` stores pictures and measurements in the workdir,
`real_images` measures the data set, and `rows` makes the rows of report/metrics.json.
May import data, devices, drawing, frozen, process, recipe, rounds, training, workdir and errors.
"""
