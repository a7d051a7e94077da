"""The w x N grid of a run: cells of teacher and students, drawn, measured and kept.

`run` evaluates a whole grid, `cells` lists and names its cells, `draw_and_measure` makes what is
missing, `cell_store` keeps pictures and measures, `real_images` measures the data, and `rows` makes
the rows of report/metrics.json.
May use data, devices, drawing, frozen, process, recipe, rounds, training, workdir and errors.
"""
