"""A stage's loss, made from the recipe."""

import jax

from gdistill.core import guidance as core_guidance
from gdistill.core import projections
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.stages import draw
from gdistill.stages import encoder
from gdistill.stages import guidance
from gdistill.stages import progressive
from gdistill.stages import teacher as teacher_stage
from gdistill.training import step as train_step


def loss_of(recipe: recipes.Recipe, stage: str) -> train_step.Loss:
  """The stage's loss with everything but arrays settled: (params, teacher params, batch, ...)."""
  noise = networks.noise(recipe.noise)
  takes_w = recipe.takes_w and stage != 'teacher'
  student_net = networks.of_recipe(recipe, takes_w, recipe.train.remat == 'blocks')
  settings = recipe.settings(stage)
  low, high = recipe.guidance.w_min, recipe.guidance.w_max
  shared = {'noise': noise, 'weight': settings.weight}
  project = networks.projection(recipe.latent)

  def loss(params, teacher_params, batch, key, num_steps):
    x, more, key_loss, key_dropout = _clean(recipe, batch, key)
    cond = {k: v for k, v in batch.items() if k in ('label', 'text', 'text_mask')} | more
    examples = {'x': x, 'cond': cond, 'id': batch['id']}
    drops = stage == 'teacher' and recipe.model.dropout
    dropout = (key_dropout, batch['id']) if drops else None
    student = networks.as_v_fn(student_net, params, recipe.model, noise, dropout)
    if stage == 'teacher':
      return teacher_stage.loss(
        student, None, examples, key_loss, p_uncond=recipe.teacher.p_uncond, **shared
      )
    loss_project = projections.clip if settings.clip_x_hat else None
    if stage == 'guidance':
      net = networks.of_recipe(recipe, takes_w=False)
      pair = isinstance(teacher_params, networks.Pair)
      teacher, *other = (
        networks.as_v_fn(net, p, recipe.model, noise)
        for p in (teacher_params if pair else (teacher_params,))
      )
      halves = core_guidance.halves(
        teacher, other=other[0] if pair else None, one_batch=settings.one_batch
      )
      steps = settings.trajectory_steps if settings.state == 'trajectory' else 0
      return guidance.loss(
        student, halves, examples, key_loss,
        w_min=low, w_max=high, w_power=settings.w_power, ws_per_pass=settings.ws_per_pass,
        trajectory_steps=steps, project=project, loss_project=loss_project, **shared,
      )  # fmt: skip
    net = networks.of_recipe(recipe, takes_w)
    teacher = networks.as_v_fn(net, teacher_params, recipe.model, noise)
    halving = dict(
      num_steps=num_steps, w_min=low, w_max=high, w_power=settings.w_power,
      on_trajectory=settings.state == 'trajectory', project=project,
      loss_project=loss_project, **shared,
    )  # fmt: skip
    if stage == 'encoder':
      return encoder.loss(student, teacher, examples, key_loss, **halving)
    return progressive.loss(
      student, teacher, examples, key_loss, sampler=settings.sampler,
      p_uncond=recipe.teacher.p_uncond if recipe.naive else 0.0, **halving,
    )  # fmt: skip

  return loss


def _clean(recipe, batch, key):
  """(x, what an inpainting network is shown of it, keys of the loss and of dropout)."""
  flip = recipe.data.flip
  if recipe.inpainting:
    key_loss, key_dropout, key_x, key_mask = jax.random.split(key, 4)
    if recipe.latent:
      x, extra = draw.masked_latents(batch, key_x, key_mask, flip=flip)
    else:
      x = draw.images(batch, key_x, flip=flip)
      extra = draw.masked_images(x, key_mask, batch['id'])
    return x, {'extra': extra}, key_loss, key_dropout
  if flip or recipe.latent:
    key_loss, key_dropout, key_x = jax.random.split(key, 3)
  else:
    (key_loss, key_dropout), key_x = jax.random.split(key), None
  clean = draw.latents if recipe.latent else draw.images
  return clean(batch, key_x, flip=flip), {}, key_loss, key_dropout
