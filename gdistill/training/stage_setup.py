"""The settings that all rounds of one stage share, and the networks made from the settings."""

import dataclasses
from typing import Any

from jax.sharding import Mesh

from gdistill.core import schedule
from gdistill.devices import mesh as meshes
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks


@dataclasses.dataclass(frozen=True)
class StageSetup:
  """The settings that all rounds of one stage share, like the stage's compiled train step."""

  stage: str  # name of the stage: 'teacher', 'guidance', 'progressive' or 'encoder'
  settings: recipes.Training
  model: recipes.Model
  noise: recipes.Noise
  takes_w: bool  # whether the student has an input for w
  teacher_takes_w: bool
  null_network: bool  # whether the teacher is a pair: a conditional and an unconditional network
  w_min: float
  w_max: float
  p_uncond: float  # probability that a label is dropped in training
  guided: bool  # whether sampling a finished round at w needs guidance: two network calls a step
  latent: bool  # whether the network works on latents
  flip: bool  # whether half of the pictures are flipped left to right
  remat: bool  # whether the backward pass recomputes the blocks' activations
  substeps: int  # number of updates in one call of the train step, on accelerators

  @property
  def net(self) -> networks.Network:
    """Returns the student's network."""
    return networks.build(self.model, self.takes_w, self.remat, self.noise)

  @property
  def teacher_net(self) -> networks.Network:
    """Returns the network of the stage's teacher."""
    return networks.build(self.model, self.teacher_takes_w, False, self.noise)

  @property
  def schedule(self) -> schedule.Schedule:
    """Returns the noise schedule, a function from t to logsnr."""
    return networks.noise(self.noise)

  @property
  def student_shapes(self) -> Any:
    """Returns the shapes of the student's parameters."""
    net = networks.build(self.model, self.takes_w, noise_settings=self.noise)
    return networks.initial_shapes(net, self.model)

  def updates_per_call(self, mesh: Mesh) -> int:
    """Returns the number of updates in one call of the train step: `substeps`, or 1 on a CPU."""
    return 1 if meshes.is_cpu(mesh) else self.substeps

  @property
  def inpainting(self) -> bool:
    """Tells whether the network sees a mask and the known part of the picture."""
    return self.model.extra_channels > 0
