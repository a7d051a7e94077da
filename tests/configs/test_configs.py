"""The configs say what the papers say, in every variant."""

import dataclasses
import importlib
import json
import math
import pathlib

import jax
import pytest

from gdistill.cli import edge
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.rounds import plan as plans

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))


def variants(name):
  spec = importlib.util.spec_from_file_location('config', ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.VARIANTS


ALL = [(name, variant) for name in CONFIGS for variant in variants(name)]


def load(name, variant=''):
  return edge.load_config(f'{ROOT}/configs/{name}.py' + (f':{variant}' if variant else ''), [])


def shapes_of(recipe, takes_w):
  """The network's; what it predicts does not count, and would be traced again."""
  net = networks.build(recipe.model, takes_w, noise_settings=recipe.noise)
  return networks.initial_shapes(net, dataclasses.replace(recipe.model, predict='v'))


def parameters(recipe, takes_w):
  """How many there are besides those of labels, of the empty prompt, and of w."""
  aside = ('label', 'class_table', 'null_text', 'w_proj')
  kept = {k: v for k, v in shapes_of(recipe, takes_w).items() if k not in aside}
  return sum(a.size for a in jax.tree.leaves(kept))


@pytest.mark.parametrize(('name', 'variant'), ALL)
def test_every_variant_resolves_survives_json_and_is_explained(name, variant):
  recipe = reading.from_config(load(name, variant))
  assert reading.from_config(json.loads(json.dumps(reading.to_dict(recipe)))) == recipe
  text = (ROOT / 'configs' / f'{name}.py').read_text().split('"""')[1]
  assert f'`{variant}`' in text if variant else f'--config=configs/{name}.py' in text
  assert 'Hardware assumed' in text and 'Result' in text


@pytest.mark.parametrize(('name', 'variant'), ALL)
def test_students_without_w_are_the_naive_and_the_single_w_ones(name, variant):
  recipe = reading.from_config(load(name, variant))
  assert recipe.takes_w == (variant not in ('naive', 'single_w'))
  assert ('w_proj' in shapes_of(recipe, recipe.takes_w)) == recipe.takes_w


@pytest.mark.parametrize('name', CONFIGS)
def test_tiny_changes_sizes_and_never_the_method(name):
  whole, tiny = (
    identity.flat(reading.to_dict(reading.from_config(load(name, v)))) for v in ('', 'tiny')
  )
  changed = {k for k in whole if whole[k] != tiny[k]}
  method = {
    'stages', 'noise.name', 'model.predict', 'model.image_size', 'data.name', 'data.flip',
    *(f'{s}.{k}' for s in recipes.STAGES for k in ('weight', 'lr', 'anneal', 'ema', 'grad_clip')),
    'teacher.p_uncond', 'guidance.w_min', 'guidance.w_max', 'guidance.state', 'guidance.w_power',
    'guidance.clip_x_hat', 'progressive.sampler', 'progressive.state', 'progressive.end_steps',
    'progressive.w_power', 'progressive.clip_x_hat',
  }  # fmt: skip
  if whole['initial']:  # a published teacher, for which `tiny` trains one of its own
    assert tiny['stages'] == ['teacher', *whole['stages']]
    method -= {'stages', 'model.image_size', 'data.name'}
  assert method <= whole.keys() and not changed & method


# Salimans & Ho's printed settings, and for the two stages Meng et al.'s.
PAPER = {
  'cifar10': dict(batch=128, teacher_lr=2e-4, lr=5e-5, dropout=0.2, classes=10, millions=60.0),
  'imagenet64': dict(
    batch=2048, teacher_lr=3e-4, lr=1e-4, dropout=0.1, classes=1000, millions=295.9
  ),
}


@pytest.mark.parametrize('name', PAPER)
def test_the_papers_runs_have_the_papers_settings(name):
  paper, recipe = PAPER[name], reading.from_config(load(name))
  plan = plans.plan(recipe)
  assert [r.num_steps for r in plan] == [0, 0, *(2**k for k in range(9, -1, -1))]
  assert [r.steps for r in plan[2:]] == [50_000] * 8 + [100_000] * 2
  assert {r.lr for r in plan[2:]} == {paper['lr']} and plan[0].lr == paper['teacher_lr']
  for stage in recipes.STAGES:
    settings = getattr(recipe, stage)
    assert settings.batch_size == paper['batch'] and settings.grad_clip == 1.0
    assert (settings.beta1, settings.beta2) == (0.9, 0.999)
  assert recipe.teacher.ema == recipe.guidance.ema == 0.9999 and recipe.progressive.ema == 0.0
  assert (recipe.teacher.warmup, recipe.progressive.warmup) == (1000, 0)
  assert recipe.progressive.anneal and not recipe.teacher.anneal
  assert recipe.teacher.weight == recipe.progressive.weight == 'snr_trunc'
  assert recipe.guidance.weight == 'snr' and recipe.model.predict == 'v'
  assert (recipe.guidance.w_min, recipe.guidance.w_max) == (0.0, 4.0)
  for section in (recipe.guidance, recipe.progressive):
    assert section.w_power == 0.0 and not section.clip_x_hat
  assert (recipe.noise.logsnr_min, recipe.noise.logsnr_max) == (-20.0, 20.0)
  assert recipe.model.dropout == paper['dropout'] and recipe.model.num_classes == paper['classes']
  assert recipe.data.flip
  # In print ImageNet 64's count has its label layer, 1000 x 768 and a bias of 768.
  printed = parameters(recipe, True) + (1000 * 768 + 768 if name == 'imagenet64' else 0)
  assert math.isclose(printed / 1e6, paper['millions'], abs_tol=0.05)


@pytest.mark.parametrize('name', ['cifar10', 'imagenet64', 'photos64'])
def test_the_stochastic_variant_changes_the_sampler_alone(name):
  a, b = (
    identity.flat(reading.to_dict(reading.from_config(load(name, v)))) for v in ('', 'stochastic')
  )
  assert {k for k in a if a[k] != b[k]} == {'progressive.sampler'}


# Rombach et al.'s networks, as published: 400.9 million parameters of cin256-v2 beside its table of
# classes, 859.5 million of Stable Diffusion 1.x; w and its rounds are Meng et al.'s.
LATENT = {
  'imagenet256_latent': dict(
    millions=400.9, w=(0.0, 14.0), betas=(0.0015, 0.0195), channels=3, context=('class', 512),
  ),
  'stable_diffusion': dict(
    millions=859.5, w=(2.0, 14.0), betas=(0.00085, 0.012), channels=4, context=('text', 768),
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', LATENT)
def test_the_latent_runs_have_the_published_networks_and_the_papers_settings(name):
  paper, recipe = LATENT[name], reading.from_config(load(name))
  m = recipe.model
  assert (m.image_size, m.image_channels) == (64, paper['channels'])
  assert (m.context, m.context_dim, m.predict, m.time) == (*paper['context'], 'eps', 'index')
  assert (recipe.noise.beta_start, recipe.noise.beta_end) == paper['betas']
  assert recipe.noise.name == 'scaled_linear' and recipe.latent
  assert (recipe.guidance.w_min, recipe.guidance.w_max) == paper['w']
  plan = plans.plan(recipe)
  assert [r.num_steps for r in plan] == [0, *(2**k for k in range(8, -1, -1))]
  assert plan[0].stage == 'guidance' and plan[0].teacher == recipe.initial != ''
  for stage in recipe.stages:
    settings = getattr(recipe, stage)
    assert settings.batch_size == 512 and not settings.clip_x_hat and settings.w_power == 0.0
  assert math.isclose(parameters(recipe, True) / 1e6, paper['millions'], abs_tol=0.05)


def test_stable_diffusions_stages_are_as_long_as_the_papers():
  plan = plans.plan(reading.from_config(load('stable_diffusion')))
  assert [r.steps for r in plan] == [3000, *[2000] * 7, *[20_000] * 2]
  ten = plans.plan(reading.from_config(load('stable_diffusion', 'ten')))
  assert [r.num_steps for r in ten] == [0, 20, 10, 5] and {r.steps for r in ten[1:]} == {2000}


@pytest.mark.parametrize('name', LATENT)
def test_the_v_variant_only_begins_with_a_teacher_of_v(name):
  a, b = (identity.flat(reading.to_dict(reading.from_config(load(name, v)))) for v in ('', 'v'))
  assert {k for k in a if a[k] != b[k]} == {'stages', 'model.predict'}
  assert b['stages'] == ['teacher', *a['stages']] and b['model.predict'] == 'v'


def test_second_versions_of_stable_diffusion_have_heads_of_64_and_another_text_encoder():
  recipe = reading.from_config(load('stable_diffusion', 'sd2'))
  # 865.9 million, in print
  assert math.isclose(parameters(recipe, True) / 1e6, 865.9, abs_tol=0.05)
