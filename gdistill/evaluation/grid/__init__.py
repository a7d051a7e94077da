"""The grid of a run: its cells, each one model, sampler, N steps and w, sampled and measured.

- `run` evaluates a whole grid.
- `cells` lists and names the cells of a grid.
- `draw_and_measure` samples and measures the pictures of cells that are missing in the workdir.
- `cell_store` keeps the pictures and the measurements of cells in the workdir.
- `real_images` measures the real images of the data set.
- `rows` makes the rows of report/metrics.json.
May use data, devices, drawing, frozen, process, recipe, rounds, training, workdir and errors.
"""
