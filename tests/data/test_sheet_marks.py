"""Contact sheets are known by a text in the PNG file, or by the files beside them."""

import io

import labelled
import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.data import pictures
from gdistill.data import sheet_marks

PNG = labelled.encode(np.arange(75, dtype=np.uint8).reshape(5, 5, 3))


def test_a_marked_sheet_is_the_same_picture_with_a_text():
  data = sheet_marks.marked(PNG)
  found, plain = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(PNG))
  found.load()
  np.testing.assert_array_equal(np.asarray(found), np.asarray(plain))
  assert found.text == {'gdistill': 'contact sheet 5 x 5'}
  assert sheet_marks.is_marked(data) and not sheet_marks.is_marked(PNG)
  assert not sheet_marks.is_marked(b'') and not sheet_marks.is_marked(b'no picture' * 9)


def test_a_tile_that_was_cut_out_of_a_sheet_is_no_sheet():
  sheet = Image.open(io.BytesIO(sheet_marks.marked(PNG)))
  sheet.load()
  text = Image.new('RGB', (1, 1))
  out = io.BytesIO()
  from PIL import PngImagePlugin

  kept = PngImagePlugin.PngInfo()
  kept.add_text('gdistill', sheet.text['gdistill'])
  text.save(out, 'PNG', pnginfo=kept)
  assert not sheet_marks.is_marked(out.getvalue())


def test_a_sheet_under_another_name_is_not_decoded():
  with pytest.raises(errors.DataError, match=r'mine\.png is no readable.*contact sheet that gdist'):
    pictures.decode(sheet_marks.marked(PNG), 'mine.png')


@pytest.mark.parametrize(('names', 'found'), [
  (['a/grid.png', 'a/label3_seed0.png'], {'a/grid.png'}),
  (['a/grid.png', 'a/prompt0_seed12.png'], {'a/grid.png'}),
  (['a/grid.png', 'b/label3_seed0.png', 'a/x.png'], set()),
  (['sheet.png', 'request.json', 'x.png'], {'sheet.png'}),
  (['a/sheet.png', 'request.json'], set()),
  (['a/x_grid.png', 'a/label3_seed0.png'], set()),
])  # fmt: skip
def test_sheets_of_earlier_versions_are_known_by_the_files_beside_them(names, found):
  assert sheet_marks.sheets(names, lambda name: PNG) == found


def test_a_sheet_with_a_mark_needs_no_files_beside_it():
  files = {'a/grid.png': sheet_marks.marked(PNG), 'b/grid.png': PNG, 'sheet.png': PNG}
  assert sheet_marks.sheets(files, files.get) == {'a/grid.png'}
