"""How generated images are measured, and the page that shows the figures.

`features/` holds the extractors, `figures/` the statistics computed from features, `grid/` the
cells of w x N that are drawn and kept, `report/` the page. `protocol` records how a figure was
made, `presets` the protocols of published tables, `reference` the statistics to compare with, and
`samples` measures folders of images.
May use every other package except `published` and `cli`.
"""
