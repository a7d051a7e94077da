"""A config becomes a recipe; an unknown key, a missing key or a wrong type gets one clear line."""

import copy
import functools
import json
import os
import re

import changed_config
import pytest

from gdistill import errors
from gdistill.recipe import checks as recipe_checks
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes

INF, NAN = float('inf'), float('nan')


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('teacher__lr', NAN, 'finite'),
    ('teacher__lr', INF, 'finite'),
    ('teacher__lr', 'abc', 'finite number'),
    ('teacher__lr', 10**400, 'finite number'),
    ('teacher__batch_size', 12.5, 'whole number'),
    ('teacher__batch_size', True, 'whole number'),
    ('model__dtype', 'fp17', 'float32, bfloat16'),
    ('model__predict', 'score', 'x, eps, v'),
    ('model__network', 'vit', 'unet, latent_unet, dit'),
    ('model__multipliers', 2, 'must be a list'),
    ('progressive__sampler', 'euler', 'deterministic, stochastic'),
    ('teacher__weight', 'min_snr', 'snr_trunc'),
    ('encoder', 1, 'must be True or False'),
    ('initial', 1, 'must be a string'),
    ('data__name', 'imagenet', 'digits'),
    ('model', 3, 'must be a section'),
  ],
)
def test_values_of_a_wrong_type_are_named_with_their_remedy(field, value, words):
  with pytest.raises(errors.ConfigError, match=re.escape(words)) as e:
    reading.from_config(changed_config.changed(**{field: value}))
  line = str(e.value)
  assert '\n' not in line
  assert field.split('__')[-1] in line


@pytest.mark.parametrize(
  ('section', 'key', 'hint'),
  [
    ('teacher', 'learning_rate', 'known keys|did you mean'),
    ('teacher', 'batchsize', 'did you mean teacher.batch_size'),
    ('train', 'w_max', 'did you mean guidance.w_max'),
  ],
)
def test_unknown_keys_suggest_the_nearest_or_the_right_section(section, key, hint):
  with pytest.raises(errors.ConfigError, match=hint):
    reading.from_config(changed_config.changed(**{f'{section}__{key}': 1}))


def test_a_missing_key_is_named():
  config = copy.deepcopy(changed_config.DIGITS)
  del config['teacher']['lr']
  with pytest.raises(errors.ConfigError, match=r'teacher\.lr is missing; add this key'):
    reading.from_config(config)


def test_a_teacher_may_begin_from_another_and_an_old_config_has_no_latents():
  given = changed_config.changed(initial='somewhere')
  assert reading.from_config(given).initial == 'somewhere'
  old = reading.from_config(changed_config.DIGITS)
  assert 'latents' not in changed_config.DIGITS
  assert old.latents == recipes.Latents() and not old.latent
  assert reading.from_config(changed_config.SD).latent


def test_the_resolved_config_is_json_and_gives_the_same_recipe():
  for config in (changed_config.DIGITS, changed_config.SD):
    recipe = reading.from_config(config)
    resolved = reading.to_dict(recipe)
    assert resolved == json.loads(json.dumps(resolved))
    assert reading.from_config(resolved) == recipe


PATHS = (
  'initial', 'data__path', 'data__classes', 'latents__autoencoder', 'latents__text',
  'latents__cache', 'evaluation__weights',
)  # fmt: skip


def value(recipe, field):
  return functools.reduce(getattr, field.split('__'), recipe)


@pytest.mark.parametrize('field', PATHS)
def test_the_home_of_a_path_is_ones_own(field, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.setattr(recipe_checks, 'check_recipe', lambda recipe: None)
  for given, read in (('~/a/b', '/home/me/a/b'), ('~', '/home/me'), ('a/~', 'a/~'), ('', '')):
    recipe = reading.from_config(changed_config.changed(**{field: given}))
    assert value(recipe, field) == read
  recipe = reading.from_config(changed_config.changed(latents__template='~ {}'))
  assert recipe.latents.template == '~ {}'


@pytest.mark.parametrize('field', PATHS)
def test_a_path_that_the_locale_cannot_name_is_one_line(field, monkeypatch):
  monkeypatch.setattr(os, 'fsencode', lambda path: path.encode('ascii', 'surrogateescape'))
  monkeypatch.setattr(recipe_checks, 'check_recipe', lambda recipe: None)
  name = field.replace('__', '.')
  with pytest.raises(
    errors.ConfigError, match=rf"^{name}='.xe9t' has characters that ascii.*UTF8=1$"
  ):
    reading.from_config(changed_config.changed(**{field: 'ét'}))
