"""How generated images are measured, and the page that shows the figures.

`features/` turns pictures into features, `figures/` computes metrics such as FID from features,
`grid/` samples and measures every cell (a model, a sampler, N steps and a w), and `report/` writes
the HTML page of a run. `protocol` records how a metric was measured, `presets` has the protocols of
published tables, `reference` statistics of real pictures; `samples` measures folders of pictures.
May use every package except `published`, `notebook` and `cli`.
"""
