"""The feature network of a run, and the measurements of real images by that network."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

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
from gdistill.evaluation.grid import cell_store
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.workdir import storage


def extractor_of(
  settings: recipes.Evaluation,
  picture_shape: tuple[int, int, int],
  train: Callable[[], source.Source],
  num_classes: int,
  workdir: storage.epath.Path,
  look: Callable[[], None] = lambda: None,
) -> extractors.Extractor:
  """Returns the feature network that the settings name: a public network or a small classifier.

  The classifier is trained once, on the training pictures `train()`, and stored in the workdir.
  `look()` is called between the classifier's updates and raises if the process should stop.
  """
  if settings.extractor == 'classifier':
    params = _classifier(train(), settings.real_images, num_classes, workdir, look)
    return extractors.of_classifier(params)
  found = extractors.load(settings.extractor, settings.weights)
  found.check(picture_shape)
  return found


def _classifier(
  train: source.Source,
  most: int,
  num_classes: int,
  workdir: storage.epath.Path,
  look: Callable[[], None],
) -> classifier.Params:
  pixels, labels = train.some(most)
  _tell_left_out(min(len(train), most) - len(pixels), 'classifier')
  key = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()[:12]
  file = workdir / 'evaluation' / f'classifier-{key}.npz'
  # Only process 0 trains the classifier, because processes on other machines may round differently
  # and get other parameters.
  if not jax.process_index() and not storage.exists(file):
    params = classifier.train_classifier(pixels, labels, num_classes, 0, look)
    storage.write_bytes(file, classifier.to_bytes(params))
  processes.barrier('the classifier is there', hours=48)
  processes.agree('the training images', key)
  try:
    return classifier.from_bytes(storage.read_bytes(file))
  except Exception as e:  # a damaged file makes zipfile, zlib or numpy raise different errors
    raise errors.CheckpointError(
      f'{file} is damaged ({errors.brief(e)}); delete the file and repeat the command'
    ) from e


@dataclasses.dataclass(frozen=True, eq=False)
class RealSet:
  """A set of real images to measure, and an optional function that changes the pixels first."""

  name: str  # name of the set: 'training', 'held out' or 'autoencoded'
  data: str  # name of the data set, the recipe's data.name
  split: str  # name of the split of the data set
  images: source.Source
  # function that changes the pixels before the measurement; None for no change
  through: Callable[[np.ndarray], np.ndarray] | None = None


def measure_sets(
  sets: Sequence[RealSet],
  store: cell_store.Store,
  num_classes: int,
  stop: interrupt.Interrupt,
) -> dict[str, reference.Reference]:
  """Returns {name of a set: reference statistics} of sets of real images.

  New reference statistics are stored in the workdir; if a set was measured before, the stored
  statistics are read and the set is not measured again.
  """
  return {one.name: _measure_set(one, store, num_classes, stop) for one in sets}


def _measure_set(
  one: RealSet, store: cell_store.Store, num_classes: int, stop: interrupt.Interrupt
) -> reference.Reference:
  images, extractor = one.images, store.extractor
  about = reference.describe(
    extractor, one.data, one.split, len(images), images.fingerprint, store.bank, images.shape
  )
  digest = protocol.digest(about)
  file = store.folder / 'real' / f'{one.name.replace(" ", "_")}-{digest}.npz'
  if storage.exists(file):
    return reference.read(file, extractor, 'delete the file and repeat the command')
  running = measure.Running(extractor, len(images), store.bank)
  for index, found in images.batches(extractors.BATCH):
    stop.check()
    pixels = found['pixels'] if one.through is None else one.through(found['pixels'])
    classes = found['label'] if extractor.num_classes == num_classes else None
    running.add(extractors.extract(extractor, pixels), index, classes)
  found = running.measured()
  if found is None:
    raise errors.DataError(
      f'all {len(images):,} pictures of the set {one.name!r} are too small or unreadable; give '
      'larger pictures'
    )
  _tell_left_out(len(images) - int(found.features.count), f'measurement of {one.name!r}')
  measured = reference.Reference(found, about)
  storage.write_bytes(file, measured.to_bytes())
  return measured


def _tell_left_out(count: int, where: str) -> None:
  """Says in one line how many real pictures are left out."""
  if count and not jax.process_index():
    progress.say(
      f'{count:,} picture{"s" if count > 1 else ""} too small or unreadable, as in training: left '
      f'out of the {where}'
    )
