"""The first step of training in latent space: the training pictures of a recipe, encoded once."""

from gdistill.frozen import encode
from gdistill.process import interrupt
from gdistill.training import assemble


def run(recipe, folder, **more):
  """Encodes the training pictures of a recipe into a folder; returns what `encode.run` returns."""
  parts = assemble.Run(recipe)
  return encode.run(
    parts.pictures[0], parts.frozen, recipe.latents, recipe.inpainting, str(folder),
    interrupt.Interrupt(), **more,
  )  # fmt: skip
