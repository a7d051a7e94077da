"""Measures generated images by metrics such as FID, and writes the HTML page of the metrics.

`features/` turns pictures into features, `figures/` computes metrics from features, `grid/` samples
and measures every combination of model, sampler, N steps and w, and `report/` writes the HTML page
of a run. `protocol` records how a metric was measured, `presets` has the protocols of published
tables, `reference` holds statistics of real pictures, and `samples` measures folders of pictures.
Of gdistill, the package `evaluation` may import all but `published`, `notebook` and `cli`.
"""
