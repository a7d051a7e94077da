"""Tests that a label means the same class in the data, in `initial` and in a run's own rounds."""

import dataclasses
import types

import labelled
import micro
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import source
from gdistill.recipe import settings as recipes
from gdistill.rounds import classes
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import class_checks
from gdistill.training import same_data
from gdistill.workdir import checkpoints
from gdistill.workdir import ledger
from gdistill.workdir import storage


def pictures(folder, names, count=2):
  for split in ('train', 'test'):
    for c, name in enumerate(names):
      for i in range(count):
        pixels = np.full((8, 8, 3), 10 * c + i, np.uint8)
        labelled.write(folder / split / name / f'{i}.png', labelled.encode(pixels))
  return folder


def a_round(folder, names, **card):
  card = {
    'stage': 'teacher',
    'class_names': list(names),
    'model': {'num_classes': len(names)},
  } | card
  storage.write_bytes(storage.path(folder) / 'card.json', checkpoints.seal(card))
  return folder


def run_of(data, initial='', workdir=None, **more):
  given = {'data': {'name': 'folder', 'path': str(data), 'held_out': 0.0, **more}}
  given |= {'initial': str(initial), 'stages': ('guidance',)} if initial else {}
  recipe = micro.recipe(model={'num_classes': 3}, **given)
  return assemble.Run(recipe, workdir)


def test_other_names_in_initial_are_refused_with_the_numbers(tmp_path):
  data = pictures(tmp_path / 'data', ('two', 'one', 'zero'))
  run = run_of(data, a_round(tmp_path / 'r', '012'))
  with pytest.raises(errors.ConfigError) as e:
    class_checks.check(run)
  said = str(e.value)
  assert said.startswith(
    f'initial={str(tmp_path / "r")!r} has other classes than the data: only the'
  )
  assert "number 0 is 'one' in the data and '0' in the round" in said
  assert 'data.classes=FILE with a line "name of the data = name of the round"' in said
  assert said.endswith('see "Class names and a map of classes" in docs/data.md')


def test_the_same_names_pass_and_another_order_is_refused(tmp_path):
  data = pictures(tmp_path / 'data', ('a', 'b', 'c'))
  class_checks.check(run_of(data, a_round(tmp_path / 'r', 'abc')))
  with pytest.raises(errors.ConfigError, match='the same, and their order is another; number 1'):
    class_checks.check(run_of(data, a_round(tmp_path / 's', 'acb')))
  with pytest.raises(
    errors.ConfigError, match="has 3 classes and the round 4; only the round has 'd"
  ):
    class_checks.check(run_of(data, a_round(tmp_path / 't', 'abcd')))


def test_a_map_gives_the_teachers_numbers_and_names(tmp_path):
  data = pictures(tmp_path / 'data', ('two', 'one', 'zero'))  # read as one, two, zero
  (tmp_path / 'map').write_text('zero = 0\none = 1\ntwo = 2\n')
  initial = a_round(tmp_path / 'r', '012')
  run = run_of(data, initial, classes=str(tmp_path / 'map'))
  class_checks.check(run)
  own, train = run.own_pictures[0], run.pictures[0]
  assert own.class_names == ('one', 'two', 'zero') and train.class_names == ('0', '1', '2')
  assert source.labels(own).tolist() == [0, 0, 1, 1, 2, 2]
  assert source.labels(train).tolist() == [1, 1, 2, 2, 0, 0]
  for i in range(6):
    np.testing.assert_array_equal(own[i][0], train[i][0])
  assert source.labels(run.pictures[1]).tolist() == [1, 1, 2, 2, 0, 0]  # the held-out set
  assert train.fingerprint != own.fingerprint
  assert run.card_entries()['class_names'] == ['0', '1', '2']
  assert train.gather([4, 0])['label'].tolist() == [0, 1]
  # After the teacher is gone, a finished round of the run says which class is which.
  a_round(tmp_path / 'w' / run.plan[0].name, '012')
  storage.remove_tree(storage.path(initial))
  again = run_of(data, initial, tmp_path / 'w', classes=str(tmp_path / 'map'))
  assert again.pictures[0].fingerprint == train.fingerprint
  class_checks.check(again)


def test_a_map_gives_the_teachers_numbers_to_latents_too(tmp_path, monkeypatch):
  data = pictures(tmp_path / 'data', ('two', 'one', 'zero'))
  (tmp_path / 'map').write_text('zero = 0\none = 1\ntwo = 2\n')
  run = run_of(data, a_round(tmp_path / 'r', '012'), classes=str(tmp_path / 'map'))
  encoded = run.own_pictures[0]  # in the place of latents, which have the data's own labels too
  monkeypatch.setattr(type(run.recipe), 'latent', True)
  monkeypatch.setattr(assemble.encode, 'cache_folder', lambda *given: '')
  monkeypatch.setattr(assemble.latents, 'load', lambda *given: encoded)
  assert source.labels(run.examples).tolist() == [1, 1, 2, 2, 0, 0]


def test_a_map_that_changes_no_number_keeps_the_fingerprint(tmp_path):
  data = pictures(tmp_path / 'data', ('eins', 'null'))
  (tmp_path / 'map').write_text('eins = one\nnull = zero\n')
  initial = a_round(tmp_path / 'r', ('one', 'zero'))
  run = run_of(data, initial, classes=str(tmp_path / 'map'))
  assert run.pictures[0].fingerprint == run.own_pictures[0].fingerprint
  assert run.pictures[0].class_names == ('one', 'zero')


def test_a_teacher_of_numbers_only_is_told_once_and_goes_on(tmp_path, capsys):
  data = pictures(tmp_path / 'data', ('a', 'b', 'c', 'd'))
  initial = a_round(tmp_path / 'r', '0123', imported={'kind': 'dit'})
  class_checks.check(run_of(data, initial))
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'has 4 classes by number only' in said
  assert "the classes of the data get these numbers: 0 'a', 1 'b', 2 'c' and 1 more; if" in said
  class_checks.check(run_of(data, initial), tell=False)
  assert not capsys.readouterr().err


def test_only_the_first_process_tells_of_a_teacher_of_numbers(tmp_path, capsys, monkeypatch):
  data = pictures(tmp_path / 'data', ('a', 'b', 'c'))
  initial = a_round(tmp_path / 'r', '012', imported={'kind': 'dit'})
  monkeypatch.setattr(class_checks.jax, 'process_index', lambda: 1)
  class_checks.check(run_of(data, initial))
  assert not capsys.readouterr().err


def test_a_class_whose_name_begins_with_a_hash_needs_a_map_in_json(tmp_path):
  data = pictures(tmp_path / 'data', ('#x', 'b', 'c'))
  initial = a_round(tmp_path / 'r', ('x', 'b', 'c'))
  (tmp_path / 'map').write_text('#x = x\nb = b\nc = c\n')
  with pytest.raises(errors.ConfigError, match="no line for the class '#x' of the data; a line t"):
    class_checks.check(run_of(data, initial, classes=str(tmp_path / 'map')))
  (tmp_path / 'map').write_text('{"#x": "x", "b": "b", "c": "c"}')
  class_checks.check(run_of(data, initial, classes=str(tmp_path / 'map')))


def test_folders_that_are_numbers_must_be_the_numbers_of_such_a_teacher(tmp_path):
  names = [str(k) for k in range(11)]
  initial = a_round(tmp_path / 'r', names, imported={'kind': 'dit'})
  class_checks.check(run_of(pictures(tmp_path / 'good', [f'{k:02}' for k in range(11)]), initial))
  with pytest.raises(errors.ConfigError, match="number 2 is '10' in the data and '2' in the round"):
    class_checks.check(run_of(pictures(tmp_path / 'bad', names), initial))
  (tmp_path / 'map').write_text('\n'.join(f'{n} = {n}' for n in names))
  run = run_of(tmp_path / 'bad', initial, classes=str(tmp_path / 'map'))
  class_checks.check(run)
  assert run.pictures[0].class_names == tuple(names)  # '10' has number 10 now


def test_a_map_gives_folders_that_begin_at_one_the_numbers_of_such_a_teacher(tmp_path):
  names = [str(k) for k in range(1, 12)]
  initial = a_round(tmp_path / 'r', list(map(str, range(11))), imported={'kind': 'dit'})
  data = pictures(tmp_path / 'data', names)
  with pytest.raises(errors.ConfigError, match=r"only the data has '11'.* data\.classes=FILE"):
    class_checks.check(run_of(data, initial))
  (tmp_path / 'map').write_text('\n'.join(f'{n} = number:{int(n) - 1}' for n in names))
  run = run_of(data, initial, tmp_path / 'w', classes=str(tmp_path / 'map'))
  class_checks.check(run)
  assert run.pictures[0].class_names == tuple(names)
  assert source.labels(run.pictures[0])[2] == 9  # the first picture of '10', read after '1'
  a_round(tmp_path / 'w' / run.plan[0].name, names[::-1])
  with pytest.raises(errors.DataError, match=r'^the round .* has other classes'):
    class_checks.check(run)


def test_folders_named_by_their_numbers_fit_a_published_network_with_names():
  numbers = [str(k) for k in range(1000)]
  card = {'class_names': numbers, 'imported': {'kind': 'dit'}, 'model': {'num_classes': 1000}}
  assert classes.names_of(card)[0] == 'tench, Tinca tinca'
  for good in ([f'{k:04}' for k in range(1000)], numbers, classes.names_of(card)):
    assert classes.compare(good, card) == ''
  for bad in (sorted(numbers), [f'{k:04}' for k in range(1, 1001)], numbers[:999]):
    assert classes.compare(bad, card)
  digits = {**card, 'class_names': ['1', '2', '3'], 'model': {'num_classes': 3}}
  assert 'only the data has' in classes.compare(['0', '1', '2'], digits)
  own = {'class_names': ['b', 'a'], 'model': {'num_classes': 2}}
  assert 'only the data has' in classes.compare(['0', '1'], own)


def test_a_map_onto_numbers_keeps_the_names_of_the_data(tmp_path, capsys):
  data = pictures(tmp_path / 'data', ('a', 'b', 'c'))
  (tmp_path / 'map').write_text('a = 2\nb = 0\nc = 1')
  initial = a_round(tmp_path / 'r', '012', imported={'kind': 'dit'})
  run = run_of(data, initial, classes=str(tmp_path / 'map'))
  class_checks.check(run)
  assert run.pictures[0].class_names == ('b', 'c', 'a') and not capsys.readouterr().err
  assert source.labels(run.pictures[0]).tolist() == [2, 2, 0, 0, 1, 1]


def test_a_round_of_the_workdir_with_other_classes_is_refused(tmp_path):
  data = pictures(tmp_path / 'data', ('a', 'b', 'c'))
  run = run_of(data, workdir=tmp_path / 'w')
  a_round(tmp_path / 'w' / run.plan[0].name, 'abc')
  class_checks.check(run)
  a_round(tmp_path / 'w' / run.plan[1].name, 'bac')
  with pytest.raises(errors.DataError, match=f'^the round .*{run.plan[1].name} has other classes'):
    class_checks.check(run)


def test_passed_over_pictures_are_told_before_the_classes_are_compared(tmp_path, capsys):
  data = pictures(tmp_path / 'data', ('a', 'b', 'c'))
  (data / 'train' / 'loose.png').write_bytes((data / 'train' / 'a' / '0.png').read_bytes())
  run = run_of(data, a_round(tmp_path / 'r', ('a', 'b', 'd')))
  with pytest.raises(errors.ConfigError, match='has other classes than the data'):
    run_checks.data(run)
  assert '1 picture in no class folder (such as train/loose.png)' in capsys.readouterr().err


def test_another_config_is_named_before_the_rounds_of_the_workdir_are_compared(tmp_path):
  old = run_of(pictures(tmp_path / 'data', ('a', 'b', 'c')), workdir=tmp_path / 'w')
  a_round(tmp_path / 'w' / old.plan[0].name, 'abc')
  config = old.config | {'teacher': old.config['teacher'] | {'lr': 0.5}}
  storage.write_json(tmp_path / 'w' / 'config.json', config)
  run = run_of(pictures(tmp_path / 'other', ('x', 'y', 'z')), workdir=tmp_path / 'w')
  with pytest.raises(errors.ConfigError, match=r'holds a run with another config \(teacher\.lr'):
    run_checks.everything(run)


def test_a_workdir_that_began_with_other_classes_says_which(tmp_path):
  data = run_of(pictures(tmp_path / 'data', ('a', 'b', 'c'))).pictures[0]
  work = storage.path(tmp_path / 'w')
  same_data.check(work, data, data)
  other = dataclasses.replace(data, class_names=('a', 'c', 'd'), fingerprint='0')
  with pytest.raises(
    errors.DataError, match="classes: only the data now has 'd'; only the data at"
  ):
    same_data.check(work, other, data)


def test_a_ledger_of_an_older_version_has_no_names(tmp_path):
  data = run_of(pictures(tmp_path / 'data', ('a', 'b', 'c'))).pictures[0]
  work = storage.path(tmp_path / 'w')
  ledger.record(work, 'data', examples=len(data), fingerprint=data.fingerprint)
  same_data.check(work, data, data)
  with pytest.raises(errors.DataError, match=r'at first 6 with [0-9a-f]+; restore'):
    same_data.check(work, dataclasses.replace(data, fingerprint='0'), data)


def test_a_map_needs_a_teacher_with_classes():
  with pytest.raises(errors.ConfigError, match=r"^data\.classes='map' names the classes of"):
    micro.recipe(data={'classes': 'map'})


def test_cards_of_published_imagenet_networks_have_its_names():
  numbers = [str(k) for k in range(1000)]
  card = {'class_names': numbers, 'imported': {'kind': 'adm64'}, 'model': {'num_classes': 1000}}
  assert classes.names_of(card)[:2] == ('tench, Tinca tinca', 'goldfish, Carassius auratus')
  assert classes.names_of({**card, 'imported': {'kind': 'other'}}) == ()
  own = {'class_names': numbers, 'model': card['model']}  # folders that are called 0 to 999
  assert classes.names_of(own) == tuple(numbers)
  assert classes.number(card, 'goldfish', '--label') == classes.number(card, '1', '--label') == 1
  assert classes.shown(card, [-1, 1]) == "no class, 1 'goldfish, Carassius auratus'"
  unnamed = {**card, 'imported': {'kind': 'x'}}
  assert classes.shown(unnamed, range(3), 2) == '0, 1 and 1 more'


def test_captions_made_from_identifiers_of_imagenet_are_told(tmp_path, capsys):
  data = pictures(tmp_path / 'data', ('n01440764', 'n01443537', 'shark'))
  pixels = run_of(data).own_pictures
  text = types.SimpleNamespace(
    recipe=types.SimpleNamespace(model=types.SimpleNamespace(context='text')),
    own_pictures=pixels, latents=recipes.Latents(),
  )  # fmt: skip
  class_checks.check(text)
  said = capsys.readouterr().err
  assert '2 classes of the data are named by identifiers of ImageNet, so that a caption is' in said
  assert "'a photo of a n01440764'; for words, rename" in said
  assert "such as n01440764 to 'tench'" in said and said.count('\n') == 1
