"""The feature network of a run, and the real images measured with it."""

import hashlib
from collections.abc import Callable

import jax
import numpy as np

from gdistill import errors
from gdistill.data import source
from gdistill.devices import processes
from gdistill.evaluation import protocol
from gdistill.evaluation import reference
from gdistill.evaluation.features import classifier
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import measure
from gdistill.evaluation.grid import cell_store as keeping
from gdistill.frozen import encode
from gdistill.process import interrupt
from gdistill.recipe import settings as recipes
from gdistill.workdir import storage

# ---- what measures


def extractor_of(
  recipe: recipes.Recipe, workdir: storage.epath.Path, look: Callable[[], None] = lambda: None
) -> extractors.Extractor:
  """The feature network that the recipe asks for."""
  e = recipe.evaluation
  if e.extractor == 'classifier':
    return extractors.of_classifier(_classifier(recipe, workdir, look))
  found = extractors.load(e.extractor, e.weights)
  found.check(encode.pixel_shape(recipe))
  return found


def _classifier(
  recipe: recipes.Recipe, workdir: storage.epath.Path, look: Callable[[], None]
) -> classifier.Params:
  """The small network, trained on the training images once and kept in the workdir."""
  pixels, labels = real_images(recipe)[0].some(recipe.evaluation.real_images)
  key = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()[:12]
  file = workdir / 'evaluation' / f'classifier-{key}.npz'
  # One process trains it: other machines would round otherwise.
  if not jax.process_index() and not storage.exists(file):
    params = classifier.train_classifier(pixels, labels, recipe.model.num_classes, 0, look)
    storage.write_bytes(file, classifier.to_bytes(params))
  processes.barrier('the classifier is there', hours=48)
  processes.agree('the training images', key)
  try:
    return classifier.from_bytes(storage.read_bytes(file))
  except Exception as e:  # zipfile, zlib and numpy each have their own
    raise errors.CheckpointError(
      f'{file} is damaged ({errors.brief(e)}); remove it and repeat'
    ) from e


def real_images(recipe: recipes.Recipe) -> tuple[source.Source, source.Source]:
  """The training and the held-out images that figures are measured with."""
  return encode.pictures(recipe)


def known_classes(
  extractor: extractors.Extractor, recipe: recipes.Recipe, labels: np.ndarray
) -> np.ndarray | None:
  """The labels where the extractor tells the data's own classes apart."""
  return labels if extractor.num_classes == recipe.model.num_classes else None


def measure_real(
  recipe: recipes.Recipe, store: keeping.Store, stop: interrupt.Interrupt
) -> dict[str, reference.Reference]:
  """{'training': ..., 'held out': ...}, measured once and kept in the workdir.

  In latent space also 'autoencoded': the held-out images as the decoder gives them back, which is
  what drawing latents perfectly would score.
  """
  out, (train, held) = {}, real_images(recipe)
  held_split = recipe.data.held_out_split or 'held out'
  sets = [('held out', held_split, held, None), ('training', recipe.data.split, train, None)]
  if recipe.latent:
    through = encode.autoencoded(recipe)
    sets.append(('autoencoded', f'{held_split}, autoencoded', held, through))
  for name, split, images, through in sets:
    images = images.subset(images.indices(recipe.evaluation.real_images))
    about = reference.describe(
      store.extractor,
      recipe.data.name,
      split,
      len(images),
      images.fingerprint,
      store.bank,
      images.shape,
    )
    file = store.folder / 'real' / f'{name.replace(" ", "_")}-{protocol.digest(about)}.npz'
    if storage.exists(file):
      out[name] = reference.read(file, store.extractor, 'remove it and evaluate again')
      continue
    running = measure.Running(store.extractor, len(images), store.bank)
    for index, found in images.batches(extractors.BATCH):
      stop.check()
      pixels = found['pixels'] if through is None else through(found['pixels'])
      features = extractors.extract(store.extractor, pixels)
      running.add(features, index, known_classes(store.extractor, recipe, found['label']))
    out[name] = reference.Reference(running.measured(), about)
    storage.write_bytes(file, out[name].to_bytes())
  return out
