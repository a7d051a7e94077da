"""Labels on the command line: by name or by number, under one rule, and never of two classes."""

import argparse

import published
import pytest

from gdistill import errors
from gdistill.cli import drawing_flags
from gdistill.cli import picture_flags

WORDS = ('cat', 'dog', 'tench, Tinca tinca')
SORTED = tuple(sorted(map(str, range(12))))  # folders '0', '1', '10', '11', '2', ...


def card_of(names, **more):
  model = {**published.LATENT, 'num_classes': len(names)}
  noise = {'name': 'cosine'}
  return {'class_names': list(names), 'model': model, 'noise': noise, 'latents': None} | {
    'guided': True, 'p_uncond': 0.1, **more
  }  # fmt: skip


def labels(*given, names=WORDS):
  return drawing_flags.labels(given, card_of(names), len(names), False)


def label(text, names=WORDS, **more):
  return picture_flags.condition('R', card_of(names, **more), text, None).label


def test_labels_are_names_numbers_and_ranges():
  assert (
    labels('dog,0') == [1, 0] and labels('0..2') == [0, 1, 2] and labels('number:1..2') == [1, 2]
  )
  assert labels('tench, Tinca tinca', 'cat') == [2, 0]  # a name with a comma is one value
  assert labels('cat, dog') == [0, 1] and labels('n01440764') == [2]
  assert drawing_flags.labels(None, card_of(WORDS), 3, False) == [0, 1, 2]
  assert drawing_flags.labels(['1', '0'], {}, 2, True) == [1, 0]  # prompts have numbers only


@pytest.mark.parametrize('given, wrong', [
  ('bird', "'bird' is no class"), ('cat,dgo', "'dgo' is no class (did you mean 'dog'?)"),
  ('name:catt', "'name:catt' is no class (did you mean 'cat'?)"),
  ('bird,11', "'bird' is no class"), ('0,11', '11 is no number of a class: 0 to 2'),
  ('3', '3 is no number of a class: 0 to 2'), ('-1', '-1 is no number of a class: 0 to 2'),
  ('2..1', '2..1 is no range of numbers from 0 to 2, the smaller number first'),
  ('0..3', '0..3 is no range of numbers from 0 to 2, the smaller number first'),
  ('', 'a class is missing, or a comma is too much'),
  ('cat,', 'a class is missing, or a comma is too much'),
  ('dog,cat,0', "class 0, 'cat', is there twice"), ('dog,dog', "class 1, 'dog', is there twice"),
])  # fmt: skip
def test_labels_that_name_no_class_or_one_twice_are_refused(given, wrong):
  with pytest.raises(errors.ConfigError) as e:
    labels(given)
  assert str(e.value).startswith(f'--labels: {wrong}; give numbers from 0 to 2, such as 2 or 0..9')
  assert "or names of classes (0 'cat', 1 'dog', 2 'tench, Tinca tinca')" in str(e.value)
  with pytest.raises(errors.ConfigError, match=r"^--labels: class 0, 'cat', is there twice; "):
    labels('cat', 'cat')


def test_the_line_about_wrong_labels_of_classes_without_names_has_no_gap():
  with pytest.raises(errors.ConfigError, match=r' 0\.\.9 or 1,3,5; no class twice; a'):
    drawing_flags.labels(['3'], card_of(WORDS) | {'class_names': None}, 3, False)
  with pytest.raises(errors.ConfigError, match=r'or 1,3,5, or names of classes .*; no class twice'):
    labels('3')


def test_every_flag_has_the_same_rule_for_a_class_that_is_called_by_a_number():
  for ask in (lambda text: labels(text, names=SORTED), lambda text: label(text, SORTED)):
    with pytest.raises(errors.ConfigError) as e:
      ask('2')
    said = "=2 can mean more than one class: give number:2 for number 2, '10', or number:4 for"
    assert said in str(e.value)
  assert labels('number:2', 'name:2', names=SORTED) == [2, 4]
  assert (label('number:2', SORTED), label('name:2', SORTED)) == (2, 4)
  with pytest.raises(errors.ConfigError, match='--labels=2 can mean more'):
    labels('0..3', names=SORTED)
  assert labels('number:0..3', names=SORTED) == [0, 1, 2, 3]
  digits = tuple('0123456789')
  assert labels('0..9', names=digits) == list(range(10)) and label('7', digits) == 7


def test_no_class_is_told_from_a_class_that_is_called_none():
  assert label('none') == label('number:-1') == -1
  with pytest.raises(errors.ConfigError, match='with a class only; give a class'):
    label('none', guided=False)
  names = ('all', 'none')
  assert label('none', names, guided=False) == 1  # a student draws no class in no other sense
  with pytest.raises(errors.ConfigError, match="the class 1, 'none', of R: give number:-1 for no"):
    label('none', names)
  assert (label('number:-1', names), label('name:none', names)) == (-1, 1)


def test_the_classes_are_printed_by_number_and_name():
  args = argparse.Namespace(label='dog', source_label='cat', folder='A')
  ours = picture_flags.Checked(card_of(WORDS), None, None, picture_flags.Condition(1), None)
  assert picture_flags.in_words(args, ours, None) == "--label=dog draws 1 'dog'"


def test_an_encoder_with_other_classes_is_told(tmp_path):
  from gdistill.workdir import checkpoints
  from gdistill.workdir import storage

  file = storage.path(tmp_path / 'card.json')
  storage.write_bytes(file, checkpoints.seal(card_of(('dog', 'cat', 'eel'))))
  args = argparse.Namespace(label='1', source_label='1', folder='A')
  ours = picture_flags.Checked(card_of(WORDS), None, None, picture_flags.Condition(1), None)
  encoder = picture_flags.Encoder(str(tmp_path), 4, 0.0, picture_flags.Condition(1))
  said = picture_flags.in_words(args, ours, encoder)
  assert said.startswith(
    "--label=1 draws 1 'dog'; --source_label=1 is 1 'cat'; their classes differ"
  )
  assert "only --folder=A has 'tench, Tinca tinca'; number 0 is 'dog' in --encoder=" in said
