"""The pictures and masks that a flag names: which are read, passed over, unused and refused."""

import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.cli import inpaint
from gdistill.cli import source_pictures
from gdistill.data import sheet_marks


def make(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / name)
  return folder


def found(folder, flag='--image'):
  return source_pictures.Sources(str(folder), flag)


def test_sheets_and_other_files_are_passed_over_and_told(tmp_path):
  make(tmp_path, 'a.png', 'deep/b.png', 'sheet.png', 'deep/sheet.png', 'deep/grid.png')
  (tmp_path / 'request.json').write_text('{}')
  (tmp_path / 'figures.json').write_text('[]')
  sheet = tmp_path / 'deep/grid.png'
  sheet.write_bytes(sheet_marks.marked(sheet.read_bytes()))
  (tmp_path / 'c.heic').write_bytes(b'x')
  sources = found(tmp_path)
  assert sources.stems == ['a', 'deep/b', 'deep/sheet']
  assert sources.notes == (
    f'--image={tmp_path}: passed over 1 picture of a format that is not read (such as c.heic), '
    '2 contact sheets that gdistill wrote (such as deep/grid.png)',
  )
  assert found(tmp_path / 'a.png').notes == ()


def test_masks_without_a_picture_are_told(tmp_path, capsys):
  sources = found(make(tmp_path / 'in', 'a.png', 'b.jpg'))
  masks = make(tmp_path / 'masks', 'a.png', 'b.png', 'c.png', 'd.png', 'deep/a.png')
  inpaint.Masks(sources, found(masks, '--mask'), False)
  assert capsys.readouterr().err == (
    f'--mask={masks}: 3 masks have no picture of the same name in --image={tmp_path}/in and are '
    f'not used (such as {masks}/c.png)\n'
  )


def test_every_mask_used_is_not_told(tmp_path, capsys):
  folder = make(tmp_path / 'in', 'a.png')
  inpaint.Masks(found(folder), found(folder, '--mask'), False)
  inpaint.Masks(found(folder), found(folder / 'a.png', '--mask'), False)
  assert capsys.readouterr().err == ''


def test_two_masks_of_one_name_are_refused(tmp_path):
  sources, masks = make(tmp_path / 'in', 'a.png'), make(tmp_path / 'masks', 'a.png', 'a.bmp')
  with pytest.raises(errors.DataError, match='has several masks of the name a; remove all but one'):
    inpaint.Masks(found(sources), found(masks, '--mask'), False)
