"""Builds the loss of a stage, a function of parameters and a batch, from the stage's settings."""

from collections.abc import Callable

import jax

from gdistill.core import guidance as core_guidance
from gdistill.core import projections
from gdistill.core import types
from gdistill.rounds import network as networks
from gdistill.stages import draw
from gdistill.stages import encoder
from gdistill.stages import guidance
from gdistill.stages import progressive
from gdistill.stages import teacher as teacher_stage
from gdistill.training import gradient as gradients
from gdistill.training import stage_setup


def loss_of(setup: stage_setup.StageSetup) -> gradients.Loss:
  """Returns a stage's loss, a function (params, teacher_params, batch, key, num_steps) -> [B]."""
  objective = {'teacher': _teacher, 'guidance': _guidance}.get(setup.stage, _halving)(setup)
  net, schedule = setup.net, setup.schedule
  drops = setup.stage == 'teacher' and setup.model.dropout

  def loss(params, teacher_params, batch, key, num_steps):
    x, more, key_loss, key_dropout = _clean(setup, batch, key)
    cond = {k: v for k, v in batch.items() if k in ('label', 'text', 'text_mask')} | more
    dropout = (key_dropout, batch['id']) if drops else None
    student = networks.as_v_fn(net, params, setup.model, schedule, dropout)
    examples = {'x': x, 'cond': cond, 'id': batch['id']}
    return objective(student, teacher_params, examples, key_loss, num_steps)

  return loss


def _teacher(setup: stage_setup.StageSetup) -> Callable[..., types.PerExample]:
  """Returns the objective of the teacher stage: predict v, with label dropout."""
  noise, weight = setup.schedule, setup.settings.weight

  def loss(student, teacher_params, examples, key, num_steps):
    return teacher_stage.loss(
      student, None, examples, key, p_uncond=setup.p_uncond, noise=noise, weight=weight
    )

  return loss


def _guidance(setup: stage_setup.StageSetup) -> Callable[..., types.PerExample]:
  """Returns the objective of stage one: the student predicts the guided teacher's v at any w."""
  settings, net, schedule = setup.settings, setup.teacher_net, setup.schedule
  steps = settings.trajectory_steps if settings.state == 'trajectory' else 0

  def loss(student, teacher_params, examples, key, num_steps):
    pair = isinstance(teacher_params, networks.Pair)
    teacher, *other = (
      networks.as_v_fn(net, params, setup.model, schedule)
      for params in (teacher_params if pair else (teacher_params,))
    )
    halves = core_guidance.halves(
      teacher, other=other[0] if pair else None, one_batch=settings.one_batch,
      channels=setup.model.guided_channels,
    )  # fmt: skip
    return guidance.loss(
      student, halves, examples, key,
      ws_per_pass=settings.ws_per_pass, trajectory_steps=steps, **_distilled(setup),
    )  # fmt: skip

  return loss


def _halving(setup: stage_setup.StageSetup) -> Callable[..., types.PerExample]:
  """Returns the objective of stage two: one student step lands where two teacher steps do.

  Rounds of stage 'progressive' step from noise to data; rounds of stage 'encoder' step from data to
  noise.
  """
  settings, net, schedule = setup.settings, setup.teacher_net, setup.schedule
  module, own = encoder, {}
  if setup.stage == 'progressive':
    module, own = progressive, dict(sampler=settings.sampler, p_uncond=setup.p_uncond)

  def loss(student, teacher_params, examples, key, num_steps):
    teacher = networks.as_v_fn(net, teacher_params, setup.model, schedule)
    return module.loss(
      student, teacher, examples, key, num_steps=num_steps,
      on_trajectory=settings.state == 'trajectory', **own, **_distilled(setup),
    )  # fmt: skip

  return loss


def _distilled(setup: stage_setup.StageSetup) -> dict:
  """Returns the keyword arguments that the losses of stage one and of stage two share."""
  return dict(
    noise=setup.schedule, weight=setup.settings.weight, w_power=setup.settings.w_power,
    w_min=setup.w_min, w_max=setup.w_max, project=networks.projection(setup.latent),
    loss_project=projections.clip if setup.settings.clip_x_hat else None,
  )  # fmt: skip


def _clean(setup: stage_setup.StageSetup, batch: dict, key: jax.Array) -> tuple:
  """Returns (clean x, {'extra': input for inpainting} or {}, key of the loss, key of dropout)."""
  flip = setup.flip
  if setup.inpainting:
    key_loss, key_dropout, key_x, key_mask = jax.random.split(key, 4)
    if setup.latent:
      x, extra = draw.masked_latents(batch, key_x, key_mask, flip=flip)
    else:
      x = draw.images(batch, key_x, flip=flip)
      extra = draw.masked_images(x, key_mask, batch['id'])
    return x, {'extra': extra}, key_loss, key_dropout
  if flip or setup.latent:
    key_loss, key_dropout, key_x = jax.random.split(key, 3)
  else:
    (key_loss, key_dropout), key_x = jax.random.split(key), None
  clean = draw.latents if setup.latent else draw.images
  return clean(batch, key_x, flip=flip), {}, key_loss, key_dropout
