"""docs/config.md is what settings.py says, and the files that it names do read the keys."""

import dataclasses
import pathlib
import sys

import pytest

from gdistill.cli import config_file
from gdistill.recipe import identity
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'docs'))
import config_readers  # noqa: E402
import make_config_table  # noqa: E402


@pytest.fixture(scope='module')
def readers():
  return config_readers.readers()


@pytest.mark.full
def test_the_page_is_what_the_settings_and_the_sources_say(readers):
  made = make_config_table.page(readers)
  assert make_config_table.PAGE.read_text() == made, 'run python docs/make_config_table.py'


def test_the_page_has_every_key_of_a_config_once():
  resolved = reading.to_dict(reading.from_config(config_file.load('configs/digits.py', [])))
  names = []
  for key in make_config_table.all_keys():
    section, _, name = key.name.partition('.')
    names += [f'{s}.{name}' for s in recipes.STAGES] if section == 'STAGE' else [key.name]
  assert sorted(names) == sorted(identity.flat(resolved))


@pytest.mark.full
def test_no_key_is_without_a_reader(readers):
  unread = [
    key.name
    for key in make_config_table.all_keys()
    if not readers.get((key.section, key.name.rpartition('.')[2]))
  ]
  assert not unread, f'no file of gdistill/ reads {unread}: remove them from settings.py'


@dataclasses.dataclass(frozen=True)
class Documented:
  # One sentence,
  # on two lines.
  told: int
  data: recipes.Data
  untold: float = 0.5


def test_the_meaning_of_a_key_is_the_comment_above_it_and_no_key_lacks_one():
  found = make_config_table.own_keys(Documented, 'x.')
  first = next(found)
  assert (first.name, first.kind, first.default) == ('x.told', '`int`', 'required')
  assert first.meaning == 'One sentence, on two lines.'
  with pytest.raises(ValueError, match=r'Documented\.untold has no comment'):
    next(found)


def test_the_page_tells_which_keys_may_change_between_two_starts():
  may = {key.name: key.may_change for key in make_config_table.all_keys()}
  assert may['encoder'] and may['mesh.fsdp'] and may['train.log_every'] and may['data.path']
  assert not may['seed'] and not may['STAGE.lr'] and not may['train.substeps']


def package(tmp_path, **sources):
  """Writes a package with the real settings.py, and one file of the room `a` for each source."""
  settings = tmp_path / 'gdistill' / 'recipe' / 'settings.py'
  settings.parent.mkdir(parents=True)
  settings.write_text((ROOT / 'gdistill' / 'recipe' / 'settings.py').read_text())
  (tmp_path / 'gdistill' / 'a').mkdir()
  for name, source in sources.items():
    head = 'from gdistill.recipe import settings as recipes\n'
    (tmp_path / 'gdistill' / 'a' / f'{name}.py').write_text(head + source)
  return tmp_path


@pytest.mark.parametrize(
  ('source', 'found'),
  [
    ('def f(t: recipes.Train | None): return t.remat', 'Train.remat'),
    ('def f(many: list[recipes.Train]): return [t.remat for t in many]', 'Train.remat'),
    ('def f(recipe: recipes.Recipe): return recipe.model.patch', 'Recipe.model Model.patch'),
    ('def g(x): return x.flip\ndef f(d: recipes.Data): return g(d)', 'Data.flip'),
    ('def g(*, x): return x.flip\ndef f(d: recipes.Data): return g(x=d)', 'Data.flip'),
    ('def g(d) -> recipes.Data: return d\nflip = g(0).flip', 'Data.flip'),
    ('def g(d: recipes.Data): return d, 1\nd, one = g(0)\nflip = d.flip', 'Data.flip'),
    ('def f(a: recipes.Noise, b: recipes.Data):\n  x, y = a, b\n  return x.name', 'Noise.name'),
    ('class C:\n  x: object\ndef f(d: recipes.Data): return C(d).x.flip', 'Data.flip'),
    (
      'class C:\n  def __init__(self, d: recipes.Data): self._d = d\n'
      '  @property\n  def d(self): return self._d\n'
      '  def f(self): return self.d.flip',
      'Data.flip',
    ),
    (
      "def f(m: recipes.Model):\n  for k, _ in (('patch', 1), ('time', 2)):\n    getattr(m, k)",
      'Model.patch Model.time',
    ),
    # An instance of the base may be an instance of each subclass that has the key.
    (
      "def f(r: recipes.Recipe, s): return r.settings(s).lr, r.settings('x').w_power",
      'Training.lr Guidance.w_power Progressive.w_power',
    ),
    (
      'import functools\ndef g(d): return d.flip\n'
      'def f(d: recipes.Data): return functools.partial(g, d)',
      'Data.flip',
    ),
    # Writing a key is not reading it, and other classes may have keys of the same names.
    ('d = recipes.Data(name="digits", held_out=0.1, flip=True)', ''),
    ('class Settings:\n  flip: bool\ndef f(d: Settings): return d.flip', ''),
    ('def f(d): return d.flip', ''),
  ],
)
def test_a_read_is_found_wherever_the_section_comes_from(tmp_path, source, found):
  reads = config_readers.readers(package(tmp_path, b=source))
  assert {f'{section}.{key}' for section, key in reads} == set(found.split())
  assert all(files == ['a/b.py'] for files in reads.values())


def test_a_section_is_followed_from_one_file_to_another(tmp_path):
  given = 'class Run:\n  data: recipes.Data\n  def first(self): return self.data'
  used = 'from gdistill.a import given\ndef f(run: given.Run): return run.first().flip'
  reads = config_readers.readers(package(tmp_path, given=given, used=used))
  assert reads == {('Data', 'flip'): ['a/used.py']}
