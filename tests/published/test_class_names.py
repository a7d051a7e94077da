"""The names of a published network's classes: stated by its files, known of ImageNet, or none."""

import json
import types

import published
import pytest

from gdistill.published import importing
from gdistill.published import readme
from gdistill.recipe import settings as recipes
from gdistill.rounds import classes


def names(source, kind, count, stated=None):
  source.mkdir(exist_ok=True)
  if stated is not None:
    (source / 'model_index.json').write_text(json.dumps({'id2label': stated}))
  model = recipes.Model(**{**published.LATENT, 'num_classes': count})
  found = types.SimpleNamespace(kind=kind, settings=model)
  return importing._class_names(found, str(source))


@pytest.mark.parametrize('kind', ['adm64', 'adm256', 'cin256', 'dit', 'sit'])
def test_networks_of_imagenet_have_its_thousand_names(tmp_path, kind):
  found = names(tmp_path / 'x', kind, 1000)
  assert len(found) == 1000 and found[207] == 'golden retriever'
  assert names(tmp_path / 'x', kind, 999) == ()


def test_a_folder_of_diffusers_may_state_the_names(tmp_path):
  stated = {'1': 'dog', '0': 'cat', '2': 'eel'}
  assert names(tmp_path / 'x', 'dit', 3, stated) == ('cat', 'dog', 'eel')
  assert names(tmp_path / 'x', 'dit', 4, stated) == ()
  assert names(tmp_path / 'x', 'dit', 3, ['cat']) == ()
  thousand = {str(k): f'my {k}' for k in range(1000)}  # not ImageNet's
  assert names(tmp_path / 'x', 'dit', 1000, thousand)[7] == 'my 7'


def test_the_classes_are_summed_up_in_one_phrase():
  card = {'class_names': ['0', '1'], 'imported': {'kind': 'dit'}, 'model': {'num_classes': 2}}
  assert classes.summary(card) == '2 classes by number only, no names'
  card = {'class_names': ['a', 'b', 'c', 'd'], 'model': {'num_classes': 4}}
  assert classes.summary(card) == "4 classes: 0 'a', 1 'b', 2 'c' and 1 more"
  folder, frozen = types.SimpleNamespace(card=card), types.SimpleNamespace(text=None)
  assert readme._classes(folder, frozen) == [
    "- Classes: 4 classes: 0 'a', 1 'b', 2 'c' and 1 more; `class_names` in gdistill/card.json "
    'lists all names by number.'
  ]
  assert readme._classes(folder, types.SimpleNamespace(text='clip')) == []
