"""The configs say what the papers say, in every variant."""

import importlib
import json
import math
import pathlib

import jax
import pytest

from gdistill import model
from gdistill import recipe as recipes
from gdistill.cli import edge
from gdistill.stages import rounds

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(p.stem for p in (ROOT / 'configs').glob('*.py'))


def variants(name):
  spec = importlib.util.spec_from_file_location('config', ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.VARIANTS


ALL = [(name, variant) for name in CONFIGS for variant in variants(name)]


def load(name, variant=''):
  return edge.load_config(f'{ROOT}/configs/{name}.py' + (f':{variant}' if variant else ''), [])


def parameters(recipe, takes_w):
  """How many there are besides those of labels and w."""
  shapes = model.initial_shapes(model.build(recipe.model, takes_w), recipe.model)
  kept = {k: v for k, v in shapes.items() if k not in ('label', 'w_proj')}
  return sum(a.size for a in jax.tree.leaves(kept))


@pytest.mark.parametrize(('name', 'variant'), ALL)
def test_every_variant_resolves_survives_json_and_is_explained(name, variant):
  recipe = recipes.from_config(load(name, variant))
  assert recipes.from_config(json.loads(json.dumps(recipes.to_dict(recipe)))) == recipe
  text = (ROOT / 'configs' / f'{name}.py').read_text().split('"""')[1]
  assert f'`{variant}`' in text if variant else f'--config=configs/{name}.py' in text
  assert 'Hardware assumed' in text and 'Result' in text


@pytest.mark.parametrize(('name', 'variant'), ALL)
def test_students_without_w_are_the_naive_and_the_single_w_ones(name, variant):
  recipe = recipes.from_config(load(name, variant))
  assert recipe.takes_w == (variant not in ('naive', 'single_w'))
  net = model.build(recipe.model, recipe.takes_w)
  assert ('w_proj' in model.initial_shapes(net, recipe.model)) == recipe.takes_w


@pytest.mark.parametrize('name', CONFIGS)
def test_tiny_changes_sizes_and_never_the_method(name):
  whole, tiny = (
    recipes.flat(recipes.to_dict(recipes.from_config(load(name, v)))) for v in ('', 'tiny')
  )
  changed = {k for k in whole if whole[k] != tiny[k]}
  method = {
    'stages', 'noise.name', 'model.predict', 'model.image_size', 'data.name', 'data.flip',
    *(f'{s}.{k}' for s in recipes.STAGES for k in ('weight', 'lr', 'anneal', 'ema', 'grad_clip')),
    'teacher.p_uncond', 'guidance.w_min', 'guidance.w_max', 'guidance.state', 'guidance.w_power',
    'guidance.clip_x_hat', 'progressive.sampler', 'progressive.state', 'progressive.end_steps',
    'progressive.w_power', 'progressive.clip_x_hat',
  }  # fmt: skip
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
  paper, recipe = PAPER[name], recipes.from_config(load(name))
  plan = rounds.plan(recipe)
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
    recipes.flat(recipes.to_dict(recipes.from_config(load(name, v)))) for v in ('', 'stochastic')
  )
  assert {k for k in a if a[k] != b[k]} == {'progressive.sampler'}
