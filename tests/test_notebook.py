"""Tests of what notebooks show: sheets, the rounds of a run, published figures beside ours."""

import numpy as np
import pytest

from gdistill import errors
from gdistill import notebook
from gdistill.drawing import sheets
from gdistill.workdir import storage


def test_a_sheet_has_a_grey_line_before_every_picture_and_after_the_last():
  tiles = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 4, 4, 1))
  sheet = sheets.sheet(tiles.astype(np.uint8), scale=2)
  assert sheet.shape == (2 * (2 * 5 + 1), 2 * (3 * 5 + 1), 1)
  small = sheet[::2, ::2, 0]
  assert (small[::5] == 128).all() and (small[:, ::5] == 128).all()
  for row in range(2):
    for column in range(3):
      block = small[5 * row + 1 : 5 * row + 5, 5 * column + 1 : 5 * column + 5]
      assert (block == 3 * row + column).all()


def test_rounds_are_those_of_a_run_or_the_one_that_is_named(tmp_path):
  for name in ('01_guidance', '00_teacher', '02_progressive_2', '03_encoder_2'):
    (tmp_path / name).mkdir()
    if not name.startswith('02'):
      (tmp_path / name / 'card.json').write_text('{}')
  assert list(notebook.rounds(tmp_path)) == ['00_teacher', '01_guidance']
  assert notebook.rounds(tmp_path / '01_guidance') == {
    '01_guidance': storage.path(tmp_path / '01_guidance')
  }
  # An encoder draws nothing to be shown.
  with pytest.raises(errors.ConfigError, match='holds no finished round'):
    notebook.rounds(tmp_path / '02_progressive_2')


def test_ours_stands_beside_the_published_figure_of_the_same_n_and_w():
  row = {'model': 'student', 'stage': 'progressive', 'num_steps': 1, 'w': 1.0, 'fd': 8.25,
         'extractor': 'inception', 'images': 50_000, 'distance': 'FID',
         'reference_images': 1_281_167, 'reference_size': '64 x 64'}  # fmt: skip
  others = [{**row, 'model': 'teacher', 'fd': 1.0}, {**row, 'w': 0.3, 'fd': 2.0},
            {**row, 'stage': 'guidance', 'fd': 3.0}]  # fmt: skip
  lines = notebook.published_table([*others, row], 'imagenet64').splitlines()
  assert [line.split(' | Meng')[0] for line in lines[2:]] == [
    '| 1 | 1 | 7.54 | 8.25', '| 8 | 0.3 | 2.05 | –',
  ]  # fmt: skip
  for key, value in (
    ('extractor', 'classifier'),
    ('images', 500),
    ('reference_size', '8 x 8'),
    ('reference_images', 1_438),
  ):
    lines = notebook.published_table([{**row, key: value}], 'imagenet64').splitlines()
    assert '| 7.54 | – |' in lines[2] and lines[-1].endswith('they do not compare.')
