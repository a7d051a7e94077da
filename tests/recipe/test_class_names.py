"""Names of classes: when two lists agree, what is said when not, and which class a text means."""

import pathlib

import pytest

from gdistill import errors
from gdistill.recipe import class_names

WHOSE = ('the data', 'the teacher')
SORTED = sorted(map(str, range(12)))  # '0', '1', '10', '11', '2', ...: as folders are sorted


def number(text, names):
  return class_names.number(text, names, '--label')


def test_imagenet_has_a_thousand_classes_in_the_order_of_its_folders():
  import tensorflow_datasets

  found = class_names.imagenet()
  assert len(found) == 1000 and list(found) == sorted(found)
  labels = pathlib.Path(tensorflow_datasets.__file__).parent / 'datasets/imagenet2012/labels.txt'
  assert list(found) == labels.read_text().split()
  words = list(found.values())  # five that are well known from papers
  for k, name in ((0, 'tench, Tinca tinca'), (1, 'goldfish'), (207, 'golden retriever')):
    assert words[k].startswith(name)
  assert words[88] == 'macaw' and words[999].startswith('toilet tissue')


def test_folders_of_imagenet_and_its_names_are_the_same_classes():
  wnids, words = zip(*class_names.imagenet().items(), strict=True)
  folders = [f'{wnid}_{name.split(",")[0]}' for wnid, name in class_names.imagenet().items()]
  for one in (wnids, folders, [w.split(',')[0].replace(' ', '_') for w in words]):
    assert class_names.difference(one, words, WHOSE) == ''
  swapped = [wnids[1], wnids[0], *wnids[2:]]
  said = class_names.difference(swapped, words, WHOSE)
  assert "order is another; number 0 is 'n01443537' in the data and 'tench, Tinca tinca'" in said


def test_a_difference_names_what_is_missing_and_the_first_numbers():
  said = class_names.difference(('two', 'one', 'zero'), ('0', '1', '2'), WHOSE)
  assert "only the data has 'two', 'one', 'zero'; only the teacher has '0', '1', '2'" in said
  assert "number 0 is 'two' in the data and '0' in the teacher, number 1" in said
  said = class_names.difference(('a', 'b', 'c'), ('c', 'b', 'a'), WHOSE)
  assert said.startswith('the names are the same, and their order is another; number 0 is')
  said = class_names.difference(('a', 'c'), ('a', 'b', 'c'), WHOSE)
  assert "the data has 2 classes and the teacher 3; only the teacher has 'b'; number 1 is" in said
  said = class_names.difference('abcde', 'fghij', WHOSE)
  assert "only the data has 'a', 'b', 'c' and 2 more; only the teacher has 'f', 'g', 'h'" in said
  assert said.endswith("is 'c' in the data and 'h' in the teacher and 2 more numbers differ")
  assert class_names.difference(('caf\u00e9',), ('cafe\u0301',), WHOSE) == ''
  assert class_names.difference(('Cat',), ('cat',), WHOSE)


@pytest.mark.parametrize(
  ('a', 'b', 'said'),
  [
    # Both names of each pair are names of one class of ImageNet.
    ('panther cougar', 'cougar panther', 'the names are the same, and their order is another'),
    ('coach carriage', 'carriage coach', 'the names are the same, and their order is another'),
    ('hog x pig', 'pig x hog', "order is another; number 0 is 'hog' in the data and 'pig' in the"),
    ('panther lion', 'cougar panther', "only the data has 'lion'; only the teacher has 'cougar'"),
    ('lion panther', 'panther cougar', "only the data has 'lion'; only the teacher has 'cougar'"),
    ('panther cougar', 'puma catamount', 'several names mean one class of ImageNet, so which is'),
    ('n02012849 n03126707', 'crane crane', 'several names mean one class of ImageNet, so which'),
    ('panther cougar', 'panther puma', ''),
    ('hog cougar', 'pig panther', ''),
    ('n03710637 n03710721', 'maillot maillot,_tank_suit', ''),
    ('hog pig', 'hog pig', ''),
  ],
)
def test_a_name_in_both_lists_means_itself_and_no_other_name_of_its_class(a, b, said):
  found = class_names.difference(a.split(), b.split(), WHOSE)
  assert said in found and bool(said) == bool(found)


def test_the_two_cranes_of_imagenet_are_known_by_their_place():
  wnids, words = zip(*class_names.imagenet().items(), strict=True)
  assert words[134] == words[517] == 'crane'
  swapped = [*wnids]
  swapped[134], swapped[517] = wnids[517], wnids[134]
  said = class_names.difference(swapped, words, WHOSE)
  assert "number 134 is 'n03126707' in the data and 'crane' in the teacher, number 517" in said


def test_a_number_and_a_name_are_told_apart():
  digits = [str(k) for k in range(10)]
  assert [number(d, digits) for d in digits] == list(range(10))
  assert number('7', SORTED[:3]) is None and number('1', ('cat', 'dog')) == 1
  assert number('dog', ('cat', 'dog')) == 1 and number('dog', ('cat',)) is None
  with pytest.raises(errors.ConfigError) as e:
    number('2', SORTED)
  assert str(e.value).startswith(
    "--label=2 can mean more than one class: give number:2 for number 2, '10', or number:4 for "
    "number 4, '2'; see"
  )
  assert (number('name:2', SORTED), number('number:2', SORTED), number('1', SORTED)) == (4, 2, 1)
  assert number('number:12', SORTED) is None and number('name:12', SORTED) is None
  # '²' is a digit of Unicode that int() refuses, as it refuses 5,000 digits
  assert number('²', digits) is None and number('9' * 5000, digits) is None


def test_numbers_with_zeros_in_front_are_names_first():
  padded = [f'{k:02}' for k in range(1, 12)]  # '01' is number 0
  assert number('03', padded) == 2
  with pytest.raises(errors.ConfigError, match="number:2 for number 2, '03', or number:3 for"):
    number('3', padded)
  assert number('03', ('a', 'b', 'c', 'd')) == 3
  assert number('3', [f'{k:02}' for k in range(12)]) == 3


def test_classes_that_are_called_like_the_rule_itself_are_found():
  names = ('name:x', 'x', 'number:0')
  assert (number('x', names), number('name:name:x', names)) == (1, 0)
  for text in ('name:x', 'number:0'):
    with pytest.raises(errors.ConfigError, match='can mean more than one class'):
      number(text, names)
  assert number('name:number:0', names) == 2


def test_a_class_of_imagenet_is_found_by_any_of_its_names():
  words = list(class_names.imagenet().values())
  for text in ('tench', 'Tinca tinca', 'n01440764', 'tench, Tinca tinca', '0', 'TENCH'):
    assert number(text, words) == 0
  assert number('great_white_shark', words) == 2
  with pytest.raises(errors.ConfigError, match=r'number:134 for number 134, .* number:517'):
    number('crane', words)  # the bird and the machine
  assert number('n02012849', words) == 134 and number('unicorn', words) is None


COMPOSED, SPLIT = '\xe9t\xe9', 'e\u0301te\u0301'  # both are shown as 'été'


def test_names_that_look_the_same_are_told_apart():
  names = ['bee', COMPOSED, SPLIT, 'e']
  shown = ["'bee'", f"'{COMPOSED}' ('\\xe9t\\xe9')", f"'{SPLIT}' ('e\\u0301te\\u0301')", "'e'"]
  assert class_names.told_apart(names) == shown
  assert class_names.look_alikes(names) == shown[1:3]
  assert class_names.told_apart([COMPOSED, COMPOSED]) == [f"'{COMPOSED}'"] * 2
  assert class_names.look_alikes(['bee', COMPOSED]) == []
  assert class_names.listed(names, 2) == f'0 {shown[0]}, 1 {shown[1]} and 2 more'
  with pytest.raises(errors.ConfigError) as e:
    number(COMPOSED, names)
  assert all(text in str(e.value) for text in shown[1:3])
