"""Tests of the presets: what each needs, and a row of figures from a folder of pictures."""

import json

import numpy as np
import pytest
import stand_in
from PIL import Image

from gdistill import errors
from gdistill.cli import evaluate as command
from gdistill.evaluation import presets
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import clip_score

NAMES = (
  'cifar10', 'imagenet64', 'imagenet256', 'coco5k', 'coco30k', 'laion_aesthetic',
  'laion_aesthetic_768',
)  # fmt: skip


class Words:
  """A stand-in for CLIP, whose embedding of a caption is the numbers that the caption holds."""

  image = stand_in.extractor('clip_l14', channels=3)

  def texts(self, captions):
    return np.array([[float(v) for v in c.split()] for c in captions])


def pictures(folder, count, size, captions):
  """Writes square pictures, each with a caption that holds the picture's embedding."""
  folder.mkdir()
  pixels = stand_in.pictures(count, size, seed=3)
  for i, p in enumerate(pixels):
    Image.fromarray(p).save(folder / f'{i}.png')
    if captions:
      found = extractors.extract(Words.image, p[None])['f'][0]
      (folder / f'{i}.txt').write_text('\n'.join(str(v) for v in found))
  return folder


@pytest.fixture(autouse=True)
def known(monkeypatch):
  made = lambda name, file='', **options: stand_in.extractor(name, channels=3)
  monkeypatch.setattr(extractors, 'load', made)
  monkeypatch.setattr(clip_score.Scorer, 'load', lambda *args: Words())


def test_these_are_the_names():
  assert tuple(presets.ALL) == NAMES
  with pytest.raises(errors.ConfigError, match=r"--preset='coco' must be one of cifar10, "):
    presets.get('coco')


@pytest.mark.parametrize('name', NAMES)
def test_alone_it_says_what_it_needs(name, capsys):
  assert command.main([f'--preset={name}']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(':')[0] for line in lines[:5]] == [
    name, 'pictures', 'reference', 'measured', 'grid',
  ]  # fmt: skip
  assert ('clip_score' in lines[3]) == presets.get(name).prompts


def test_published_figures_are_the_printed_ones():
  found = {
    (name, p['num_steps'], p.get('w')): (p['fd'], p.get('clip_score'))
    for name in NAMES
    for p in presets.get(name).published
  }
  assert found == {
    ('imagenet64', 1, 1.0): (7.54, None), ('imagenet64', 8, 0.3): (2.05, None),
    ('coco5k', 8, None): (26.9, 0.30),
    ('laion_aesthetic', 1, None): (108.2, None), ('laion_aesthetic', 2, None): (33.3, None),
    ('laion_aesthetic', 4, None): (15.1, None), ('laion_aesthetic', 8, None): (13.9, None),
    ('laion_aesthetic_768', 8, None): (14.12, None),
  }  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize('name', NAMES)
def test_a_folder_of_pictures_becomes_a_row_that_says_in_what_it_departs(name, tmp_path, capsys):
  preset = presets.get(name)
  size = max(min(preset.size, 64), -(-preset.size // 4))  # a picture is enlarged at most 4 times
  drawn = pictures(tmp_path / 'drawn', 6, size, preset.prompts)
  given = [f'--preset={name}', f'--images={drawn}', f'--reference={drawn}']
  assert command.main(given) == 0
  said = capsys.readouterr()
  row = json.loads(said.out)
  assert row['preset'] == name and row['fd'] == pytest.approx(0, abs=1e-9)
  assert (
    f'6 pictures instead of {preset.images:,}' in row['departures']
    and row['departures'] in said.err
  )
  brought = f'centre square, by area to {preset.size}'
  assert row['pictures_resize'] == ('none' if size == preset.size else brought)
  if preset.prompts:  # each caption's embedding equals its picture's embedding
    assert row['clip_score'] == pytest.approx(1, abs=1e-3) and row['clip'] == 'clip_l14'
    (drawn / '3.txt').unlink()
    assert command.main(given) == 3
    assert '3.txt cannot be read' in capsys.readouterr().err


def test_both_sets_are_brought_to_the_presets_size_and_the_row_says_so(tmp_path, capsys):
  drawn = pictures(tmp_path / 'drawn', 5, 48, False)
  real = pictures(tmp_path / 'real', 5, 64, False)
  assert command.main(['--preset=cifar10', f'--images={drawn}', f'--reference={real}']) == 0
  row = json.loads(capsys.readouterr().out)
  assert row['reference_images'] == 5
  assert row['departures'].split('; ') == [
    '5 pictures instead of 50,000', '5 pictures of another size resized to 32 x 32',
    'a reference resized: centre square, by area to 32',
    'a reference of 5 pictures instead of 50,000',
  ]  # fmt: skip


def test_every_departure_is_found_and_none_where_there_is_none():
  preset = presets.get('cifar10')
  row = {'images': 50_000, 'extractor': 'inception', 'resize': 'TensorFlow 1, bilinear',
         'reference_images': 50_000}  # fmt: skip
  assert presets.departures(preset, row, 0) == []
  for change, words in (
    ({'images': 49_999}, '49,999 pictures'),
    ({'extractor': 'lite0'}, 'lite0 instead of inception'),
    ({'resize': 'bilinear with half-pixel centres'}, "pytorch-fid's resize"),
    ({'reference_images': 10_000}, 'a reference of 10,000 pictures'),
    ({'reference_images': None}, 'only mu and sigma are known'),
  ):
    [found] = presets.departures(preset, {**row, **change}, 0)
    assert words in found
  assert presets.departures(preset, row, 7) == ['7 pictures of another size resized to 32 x 32']
  assert presets.departures(preset, row, 0, 'clip_b32') == ['clip_b32 as well']
  coco = presets.get('coco5k')
  row |= {'images': 5_000, 'reference_images': 5_000}
  assert presets.departures(coco, row, 0, 'clip_l14') == []
  assert presets.departures(coco, row, 0, 'clip_b32') == ['clip_b32 instead of clip_l14']
