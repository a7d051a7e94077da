"""Builds the rounds, mesh, networks and data of a run from a recipe and a workdir."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from gdistill import errors
from gdistill.data import earlier
from gdistill.data import latent_cache
from gdistill.data import latents
from gdistill.data import pipeline as data
from gdistill.data import source
from gdistill.devices import mesh as meshes
from gdistill.frozen import copies
from gdistill.frozen import encode
from gdistill.frozen import networks as frozen_networks
from gdistill.frozen import prompts as run_prompts
from gdistill.process import progress
from gdistill.recipe import class_map
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import classes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.rounds import plan as plans
from gdistill.training import stage_setup
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import storage

# The ledger's event with the fingerprints, by samples of bytes, of the pictures of a run that an
# earlier version of gdistill began.
SAMPLED = 'pictures-sampled'


class Run:
  """A run of training: the settings, and the rounds, mesh, networks and data made from settings.

  Each cached property, such as `mesh`, is built at the first use and then stays in memory.
  `workdir` may be None if no file of the run is needed, for example for --plan. `devices` is the
  number of devices to plan for, which may exceed the devices of this machine, or the devices to
  compile for; None takes the devices of this machine. Outside of this module, only the checks of
  training/ read the attribute `recipe`.
  """

  def __init__(
    self,
    recipe: recipes.Recipe,
    workdir: Any = None,
    devices: int | Sequence[Any] | None = None,
  ):
    self.recipe = recipe
    self.workdir = None if workdir is None else storage.path(workdir)
    self.cpu_devices, self.initial = recipe.mesh.cpu_devices, recipe.initial
    self.seed, self.inpainting = recipe.seed, recipe.inpainting
    self.data, self.latents, self.loop = recipe.data, recipe.latents, recipe.train
    self.evaluation, self.num_classes = recipe.evaluation, recipe.model.num_classes
    self.w_range = recipe.guidance.w_min, recipe.guidance.w_max
    self.student_sampler = recipe.progressive.sampler
    self._devices = devices

  @functools.cached_property
  def plan(self) -> tuple[plans.Round, ...]:
    """The rounds of the run, in the order of training."""
    return plan_of(self.recipe)

  @functools.cached_property
  def mesh(self) -> Mesh | AbstractMesh:
    """The mesh of devices that the run computes on."""
    m = self.recipe.mesh
    return meshes.make_mesh(m.data, m.fsdp, m.slices, self._devices)

  @functools.cached_property
  def setups(self) -> Mapping[str, stage_setup.StageSetup]:
    """{stage: the StageSetup that all rounds of the stage share}, in the order of the rounds."""
    stages = dict.fromkeys(r.stage for r in self.plan)
    return {stage: setup_of(self.recipe, stage) for stage in stages}

  @functools.cached_property
  def student_net(self) -> networks.Network:
    """The network that all students of the run share, without parameters."""
    r = self.recipe
    return networks.build(r.model, r.takes_w, noise_settings=r.noise)

  @property
  def student_shapes(self) -> Any:
    """The shapes of a student's parameters."""
    return networks.initial_shapes(self.student_net, self.recipe.model)

  @functools.cached_property
  def frozen(self) -> frozen_networks.Frozen:
    """The frozen autoencoder and text encoder; a run in pixel space has neither."""
    return frozen_networks.of_settings(self.latents)

  @property
  def autoencoder(self) -> Any:
    """The frozen autoencoder, or None in pixel space; the text encoder is not read."""
    where = self.latents.autoencoder
    return frozen_networks.autoencoder(where) if where else None

  @property
  def input_shape(self) -> tuple[int, int, int]:
    """The shape [h, w, c] of the trained network's input, which is a picture or a latent."""
    return networks.image_shape(self.recipe.model)

  @property
  def picture_shape(self) -> tuple[int, int, int]:
    """The shape [H, W, C] of a picture in the data set."""
    return frozen_networks.Frozen(self.autoencoder).picture_shape(self.input_shape)

  @functools.cached_property
  def own_pictures(self) -> tuple[source.Source, source.Source]:
    """The pictures with the data's own labels, as a pair (training set, held-out set).

    They have the fingerprints of earlier versions of gdistill if the workdir, or the cache of
    latents, was begun by such a version and the same pictures are read to the same pixels.
    """
    try:
      found = data.load(self.data, self.picture_shape)
      recorded = self.recorded_pictures(found[0])
      return earlier.as_recorded(found, recorded, self._sampled(), progress.say)
    except errors.ShapeError as e:
      if self.autoencoder is None:
        raise
      raise self._of_another_shape(e.found) from e

  def recorded_pictures(self, train: source.Source) -> str:
    """Returns the fingerprint of the training pictures that the run or its cache began with, or ''.

    The fingerprint in the cache comes first, because latents are added only to those of the cache.
    Without a cache, a run that an earlier version of gdistill began is taken to have begun with the
    pictures `train`: the fingerprint of the latents that are made again shows if that is wrong.
    """
    told = next((e for e in self._events() if e['event'] == 'data'), {})
    if not self.recipe.latent:
      return told.get('fingerprint') or ''
    there = self.latents.cache or self.workdir is not None
    cached = latent_cache.recorded_examples(self.latent_folder) if there else ''
    if not cached and told and 'class_names' not in told:  # earlier versions recorded no names
      return train.before().fingerprint
    return cached or told.get('pictures') or ''

  def _sampled(self) -> Sequence[str]:
    """Returns the fingerprints by samples of bytes, of the training set and of the held-out set.

    The ledger has them only if an earlier version of gdistill began the run.
    """
    found = [e.get('fingerprints', ()) for e in self._events() if e['event'] == SAMPLED]
    return found[-1] if found else ()

  def _events(self) -> list[dict[str, Any]]:
    return ledger.ledger(self.workdir) if self.workdir is not None else []

  @functools.cached_property
  def class_order(self) -> tuple[list[int], tuple[str, ...]] | None:
    """(number of each class of the data, name of each number), or None for the data's own.

    The map of data.classes says the numbers. The names are the teacher's, or those of the data if
    the teacher has numbers only.
    """
    file = self.data.classes
    card = self._card_of_classes() if file else None
    if card is None:
      return None
    data_names = self.own_pictures[0].class_names
    names, count = classes.names_of(card), card['model']['num_classes']
    numbers = class_map.numbers(file, data_names, names, count)
    own = (data_names[numbers.index(k)] for k in range(count))
    return numbers, names or tuple(own)

  def _card_of_classes(self) -> Mapping[str, Any] | None:
    """Returns card.json of `initial`, or, if it is gone, of a finished round of the run."""
    own = [self.workdir / r.name for r in self.plan] if self.workdir is not None else []
    found = (f for f in (storage.path(self.initial), *own) if finished_rounds.is_finished(f))
    return next(map(finished_rounds.read_card, found), None)

  @functools.cached_property
  def pictures(self) -> tuple[source.Source, source.Source]:
    """The pictures with the labels of `class_order`, as a pair (training set, held-out set)."""
    if self.class_order is None:
      return self.own_pictures
    return tuple(found.renumbered(*self.class_order) for found in self.own_pictures)

  @functools.cached_property
  def latent_folder(self) -> str:
    """The folder in which the latents of the training pictures are stored."""
    return encode.cache_folder(self.latents, self.workdir)

  @functools.cached_property
  def examples(self) -> source.Source | latents.Latents:
    """The examples that training reads: pictures, or latents that are encoded already."""
    if not self.recipe.latent:
      return self.pictures[0]
    found = latents.load(self.latent_folder, self.input_shape)
    return found if self.class_order is None else found.renumbered(*self.class_order)

  @functools.cached_property
  def prompts(self) -> list[str]:
    """The prompts that evaluation samples with; [] if the network is not conditioned on text."""
    if not self.latents.text:
      return []
    # The prompts in the card of a finished round are kept, even if the data now have others,
    # because the grid must not mix pictures that were drawn for other prompts.
    for r in self.plan if self.workdir is not None else ():
      if finished_rounds.is_finished(self.workdir / r.name):
        card = finished_rounds.read_card(self.workdir / r.name)
        if 'prompts' in (card.get('latents') or {}):
          return run_prompts.of_card(card)
    return run_prompts.of_run(*self.pictures, self.latents.template)

  @property
  def teacher_folder(self) -> storage.epath.Path:
    """The folder of the guided teacher from which all students descend."""
    return folders.guided_teacher(self.workdir, self.plan, self.recipe.initial)

  @property
  def config(self) -> dict:
    """Every setting of the run, defaults included, in plain JSON types."""
    return reading.to_dict(self.recipe)

  @property
  def digest(self) -> str:
    """A digest of the settings that must be equal in all processes that train the run together."""
    return identity.digest_together(self.recipe)

  def card_entries(self) -> dict[str, Any]:
    """Returns the entries that the card.json files of all rounds of this run share."""
    r, examples = self.recipe, self.examples
    parent = finished_rounds.read_card(r.initial) if r.initial else {}
    return {
      'class_names': list(examples.class_names),
      'latents': self._about_latents(),
      'data': {'examples': len(examples), 'fingerprint': examples.fingerprint},
      'licence': parent.get('licence'),
      'seed': r.seed,
      'config': self.config,
      'config_digest': identity.digest(r),
    }

  def _about_latents(self) -> dict[str, Any] | None:
    if not self.recipe.latent:
      return None
    where = self.latents
    return {
      **self.frozen.names(),
      'template': where.template,
      'prompts': run_prompts.held_out(self.pictures[1]) if where.text else [],
    }

  def _of_another_shape(self, found: tuple[int, int, int]) -> errors.DataError:
    height, _, channels = found
    factor = self.autoencoder.factor
    fits = channels == 3 and height % factor == 0
    remedy = (
      f'set model.image_size={height // factor}'
      if fits
      else f'prepare RGB pictures with sides divisible by {factor}'
    )
    return errors.DataError(
      f'model.image_size={self.recipe.model.image_size}: {self.data.path} holds pictures of '
      f'height, width, channels {list(found)}, and the autoencoder makes one latent from '
      f'{factor} x {factor} pixels of 3 channels (RGB); {remedy}'
    )


def plan_of(recipe: recipes.Recipe) -> tuple[plans.Round, ...]:
  """Returns the rounds that a recipe trains, in the order of training."""
  return plans.plan(recipe.stages, recipe.encoder, recipe.initial, recipe.settings)


def setup_of(recipe: recipes.Recipe, stage: str) -> stage_setup.StageSetup:
  """Returns the settings that all rounds of a stage share."""
  teacher = stage == 'teacher'
  return stage_setup.StageSetup(
    stage=stage,
    settings=recipe.settings(stage),
    model=recipe.model,
    noise=recipe.noise,
    takes_w=recipe.takes_w and not teacher,
    teacher_takes_w=recipe.takes_w and stage in ('progressive', 'encoder'),
    null_network=stage == 'guidance' and recipe.stages[0] == stage and _is_pair(recipe.initial),
    w_min=recipe.guidance.w_min,
    w_max=recipe.guidance.w_max,
    p_uncond=recipe.teacher.p_uncond if teacher or recipe.naive else 0.0,
    guided=teacher or recipe.naive,
    latent=recipe.latent,
    flip=recipe.data.flip,
    remat=recipe.train.remat == 'blocks',
    substeps=recipe.train.substeps,
  )


def _is_pair(folder: str) -> bool:
  """Tells whether `folder` is a finished round with a second, unconditional network."""
  there = finished_rounds.is_finished(folder)
  return there and finished_rounds.read_card(folder).get('null') == 'network'


def of_workdir(workdir: Any, change: Callable[[dict[str, Any]], Any] | None = None) -> Run:
  """Returns the run that a workdir holds, with the workdir's own copies of the frozen networks.

  `change(config)` may edit the run's config in place, before the run is built. Raises ConfigError
  if the workdir holds no run.
  """
  workdir = storage.path(workdir)
  file = workdir / 'config.json'
  if not storage.exists(file):
    raise errors.ConfigError(
      f'--workdir={workdir} holds no run (no config.json); give the workdir of a trained run'
    )
  try:
    # Limits are checked after `change`, which may correct a value that is now out of its limits.
    config = reading.to_dict(reading.unchecked(storage.read_json(file)))
    if change is None:
      reading.from_config(config)
  except errors.ConfigError as e:
    raise errors.ConfigError(
      f'{os.fspath(file)}: {e}; if another version of gdistill wrote this file, use that version'
    ) from e
  if change is not None:
    change(config)
  recipe = reading.from_config(config)
  # The paths of the copies are set after from_config, because from_config refuses paths in an
  # object store.
  own = copies.own_paths(recipe.latents, workdir)
  return Run(dataclasses.replace(recipe, latents=own), workdir)
