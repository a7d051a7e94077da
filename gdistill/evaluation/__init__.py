"""How generated images are measured, and the page that shows the figures.

`features/` turns pictures into features, `figures/` computes figures such as FID from features,
`grid/` samples and measures every cell (a model, a sampler, N steps and a w), and `report/` writes
the HTML page of a run. `protocol` records how a figure was made, `presets` the protocols of
published tables, `reference` what samples are compared with; `samples` measures image folders.
May use every package except `published`, `notebook` and `cli`.
"""
