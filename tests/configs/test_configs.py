"""Tests of the configs: the settings of the papers, in every variant, loaded from any folder."""

import ast
import dataclasses
import json
import math
import pathlib
import shutil
import sys
import types

import jax
import pytest

from gdistill import errors
from gdistill.cli import command
from gdistill.cli import config_file
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.training import assemble

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(p.stem for p in (ROOT / 'configs').glob('*.py') if p.stem != 'common')


def variants(name):
  """Returns the VARIANTS that a config names, without executing the config."""
  tree = ast.parse((ROOT / 'configs' / f'{name}.py').read_text())
  named = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
  return ast.literal_eval(named['VARIANTS'])


ALL = [(name, variant) for name in CONFIGS for variant in variants(name)]


def load(name, variant=''):
  return config_file.load(f'{ROOT}/configs/{name}.py' + (f':{variant}' if variant else ''), [])


def shapes_of(recipe, takes_w):
  """Returns the shapes of all parameters, with predict='v': variants share traced shapes."""
  net = networks.build(recipe.model, takes_w, noise_settings=recipe.noise)
  return networks.initial_shapes(net, dataclasses.replace(recipe.model, predict='v'))


def parameters(recipe, takes_w):
  """Returns the number of parameters without those of labels, of the empty prompt and of w."""
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


@pytest.mark.full
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
  if whole['initial']:  # `tiny` trains a teacher instead of reading the published one
    assert tiny['stages'] == ['teacher', *whole['stages']]
    method -= {'stages', 'model.image_size', 'data.name'}
  assert method <= whole.keys() and not changed & method


# Settings printed by Salimans & Ho, and by Meng et al. for the two stages.
PAPER = {
  'cifar10': dict(batch=128, teacher_lr=2e-4, lr=5e-5, dropout=0.2, classes=10, millions=60.0),
  'imagenet64': dict(
    batch=2048, teacher_lr=3e-4, lr=1e-4, dropout=0.1, classes=1000, millions=295.9
  ),
}


@pytest.mark.parametrize('name', PAPER)
def test_the_papers_runs_have_the_papers_settings(name):
  paper, recipe = PAPER[name], reading.from_config(load(name))
  plan = assemble.plan_of(recipe)
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
  # The printed count for ImageNet 64 includes the label layer, 1000 x 768 and a bias of 768.
  printed = parameters(recipe, True) + (1000 * 768 + 768 if name == 'imagenet64' else 0)
  assert math.isclose(printed / 1e6, paper['millions'], abs_tol=0.05)


@pytest.mark.parametrize('name', ['cifar10', 'imagenet64', 'photos64'])
def test_the_stochastic_variant_changes_the_sampler_alone(name):
  a, b = (
    identity.flat(reading.to_dict(reading.from_config(load(name, v)))) for v in ('', 'stochastic')
  )
  assert {k for k in a if a[k] != b[k]} == {'progressive.sampler'}


# Rombach et al.'s published networks: cin256-v2 has 400.9 million parameters without its table of
# classes, Stable Diffusion 1.x has 859.5 million. The range of w and the rounds are those of Meng
# et al.
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
  plan = assemble.plan_of(recipe)
  assert [r.num_steps for r in plan] == [0, *(2**k for k in range(8, -1, -1))]
  assert plan[0].stage == 'guidance' and plan[0].teacher == recipe.initial != ''
  for stage in recipe.stages:
    settings = getattr(recipe, stage)
    assert settings.batch_size == 512 and not settings.clip_x_hat and settings.w_power == 0.0
  assert math.isclose(parameters(recipe, True) / 1e6, paper['millions'], abs_tol=0.05)


def test_stable_diffusions_stages_are_as_long_as_the_papers():
  plan = assemble.plan_of(reading.from_config(load('stable_diffusion')))
  assert [r.steps for r in plan] == [3000, *[2000] * 7, *[20_000] * 2]
  ten = assemble.plan_of(reading.from_config(load('stable_diffusion', 'ten')))
  assert [r.num_steps for r in ten] == [0, 20, 10, 5] and {r.steps for r in ten[1:]} == {2000}


@pytest.mark.parametrize('name', LATENT)
def test_the_v_variant_only_begins_with_a_teacher_of_v(name):
  a, b = (identity.flat(reading.to_dict(reading.from_config(load(name, v)))) for v in ('', 'v'))
  assert {k for k in a if a[k] != b[k]} == {'stages', 'model.predict'}
  assert b['stages'] == ['teacher', *a['stages']] and b['model.predict'] == 'v'


def test_second_versions_of_stable_diffusion_have_heads_of_64_and_another_text_encoder():
  recipe = reading.from_config(load('stable_diffusion', 'sd2'))
  # The printed count of Stable Diffusion 2's network is 865.9 million.
  assert math.isclose(parameters(recipe, True) / 1e6, 865.9, abs_tol=0.05)


OWN = """
from configs import common, digits


def get_config(variant=''):
  common.check(variant, ('', 'wide'))
  config = digits.get_config('tiny')
  config.model.channels = 16 if variant else 8
  return config
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """Returns a folder with copies of configs/; the repository's own configs cannot be imported."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [p for p in sys.path if p and pathlib.Path(p) != ROOT])
  copies = tmp_path / 'copies'
  shutil.copytree(ROOT / 'configs', copies, ignore=shutil.ignore_patterns('__pycache__'))
  return copies


def of_configs():
  return {k: m for k, m in sys.modules.items() if k.split('.')[0] in ('configs', 'common')}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_loads_by_its_absolute_path_from_any_folder(name, elsewhere):
  assert load(name, 'tiny') == config_file.load(f'{elsewhere}/{name}.py:tiny', [])
  assert config_file.load(f'copies/{name}.py', []) == load(name)


def test_a_config_of_ones_own_stands_beside_ours_and_uses_them(elsewhere):
  (elsewhere / 'own.py').write_text(OWN)
  assert config_file.load(f'{elsewhere}/own.py', []) == load('digits', 'tiny')
  assert config_file.load('copies/own.py:wide', [])['model']['channels'] == 16
  with pytest.raises(errors.ConfigError, match="variant='huge' must be empty or one of wide"):
    config_file.load('copies/own.py:huge', [])


def test_each_config_reads_the_common_file_of_its_own_folder(elsewhere):
  other = elsewhere.parent / 'other'
  other.mkdir()
  (other / 'own.py').write_text(
    'from configs import common\ndef get_config():\n  return {"seed": common.SEED}\n'
  )
  (other / 'common.py').write_text('SEED = 7\n')
  (elsewhere.parent / 'link.py').symlink_to(other / 'own.py')
  for _ in range(2):
    assert config_file.load(f'{other}/own.py', []) == {'seed': 7}
    assert config_file.load('link.py', []) == {'seed': 7}
    assert config_file.load('copies/digits.py', ['--config.seed=3'])['seed'] == 3


@pytest.mark.parametrize('there', [False, True])
def test_loading_leaves_no_trace_in_the_import_system(there, elsewhere, monkeypatch):
  """With `there`, the program has already imported its own package `configs` and `common`."""
  for name in ('configs', 'configs.common', 'common'):
    monkeypatch.delitem(sys.modules, name, raising=False)
    if there:
      monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  (elsewhere / 'broken.py').write_text('from configs import common\n1 / 0\n')
  paths, modules, finders = list(sys.path), of_configs(), list(sys.meta_path)
  assert load('cifar10')['seed'] == 0
  for name in ('broken.py', 'common.py', 'digits.py:huge'):
    with pytest.raises(errors.ConfigError):
      config_file.load(f'{elsewhere}/{name}', [])
    assert sys.path == paths and of_configs() == modules and sys.meta_path == finders


def test_a_config_alone_in_a_folder_needs_no_common_file(elsewhere):
  alone = elsewhere.parent / 'alone.py'
  alone.write_text('def get_config():\n  return {"seed": 1}\n')
  assert config_file.load(str(alone), []) == {'seed': 1}


@pytest.mark.parametrize('line', ['from configs import common', 'import configs.common'])
def test_a_copied_config_without_the_common_file_says_what_to_copy(line, tmp_path, capsys):
  text = (ROOT / 'configs' / 'digits.py').read_text().replace('from configs import common', line)
  (tmp_path / 'digits.py').write_text(text)
  said = refused(f'{tmp_path}/digits.py', capsys)
  assert f'imports common.py, which {tmp_path} does not have; copy common.py there' in said


def test_what_is_no_config_and_what_is_damaged_is_said(elsewhere, capsys):
  for variant in ('', ':tiny'):
    said = refused(f'{ROOT}/configs/common.py{variant}', capsys)
    assert 'common.py has no function get_config' in said and 'give the path of a config' in said
  (elsewhere / 'common.py').write_text('def check(:\n')
  said = refused(f'{elsewhere}/digits.py', capsys)
  assert f'digits.py imports {elsewhere}/common.py, line 1: ' in said
  (elsewhere / 'cifar10.py').write_text('import nothing_of_this_name\n')
  assert "No module named 'nothing_of_this_name'" in refused(f'{elsewhere}/cifar10.py', capsys)
  (elsewhere / 'cifar10.py').write_text('from configs.imagenet64 import nothing\n')
  (elsewhere / 'imagenet64.py').write_text('')
  said = refused(f'{elsewhere}/cifar10.py', capsys)
  assert "cannot import name 'nothing' from 'configs.imagenet64'" in said and 'copy' not in said


def refused(config, capsys):
  """Returns the one line that `gdistill plan` says of a config that cannot be used."""
  assert command.main(['plan', f'--config={config}']) == 2
  said = capsys.readouterr().err
  assert said.startswith('gdistill: --config=') and said.count('\n') == 1, said
  return said
