"""How generated images are measured, and the page that shows the figures.

- `features/` holds the feature extractors, networks that turn pictures into features.
- `figures/` computes figures such as FID from features.
- `grid/` samples and measures pictures for every cell: a model, a sampler, N steps and a w.
- `report/` writes the HTML page that shows the figures of a run.
- `protocol` records how a figure was made.
- `presets` holds the protocols of published tables.
- `reference` holds the feature statistics of the pictures that samples are compared with.
- `samples` measures folders of images.
The package `evaluation` may import every other package of gdistill except `published` and `cli`.
"""
