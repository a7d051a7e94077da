"""Tests of the pictures in the page: of the right cell, small, only from the folder of cells."""

import base64
import io

import fake_run
import numpy as np
from PIL import Image

from gdistill.evaluation.report import grouping
from gdistill.evaluation.report import page
from gdistill.evaluation.report import sprites
from gdistill.workdir import storage


def test_the_whole_grid_stays_small(tmp_path):
  rows = fake_run.rows()
  folder = fake_run.workdir(storage.path(tmp_path), rows, rounds=False)
  found = sprites.sprites(folder, grouping.series(grouping.clean(rows)))
  assert sum(len(c['sprite']) for c in found.cells) < 1_000_000


def test_pictures_are_those_of_their_cell(tmp_path):
  rows = fake_run.rows(ws=(1.0,), steps=(2,))
  folder = fake_run.workdir(storage.path(tmp_path), rows, rounds=False)
  cells = fake_run.embedded(page.write(folder).read_text())['cells']
  assert len({c['sprite'] for c in cells}) == len(cells) == 5
  chosen = [r for places in grouping.series(rows).values() for r in places.values()]
  for cell, row in zip(cells, chosen, strict=True):
    with np.load(folder / 'evaluation' / 'cells' / f'{row["cell"]}.npz') as file:
      pixels = file['pixels'][..., 0]
    image = np.array(Image.open(io.BytesIO(base64.b64decode(cell['sprite']))))
    assert image.shape == (4 * 9 + 1, 10 * 9 + 1)
    for i in (0, 9, 10, 39):  # column i % 10 is the class of image i
      top, left = 1 + i // 10 * 9, 1 + i % 10 * 9
      np.testing.assert_array_equal(image[top : top + 8, left : left + 8], pixels[i])


def test_many_large_pictures_are_made_fewer_then_smaller(tmp_path, monkeypatch):
  rows = [r for r in fake_run.rows(ws=(1.0,), steps=(2,)) if 'cell' in r]
  rng = np.random.default_rng(0)
  for row in rows:
    file = io.BytesIO()
    np.savez(file, pixels=rng.integers(0, 256, (40, 64, 64, 3)).astype(np.uint8))
    storage.write_bytes(
      storage.path(tmp_path) / 'evaluation' / 'cells' / f'{row["cell"]}.npz', file.getvalue()
    )
  monkeypatch.setattr(sprites, 'MAX_BYTES', 200_000)
  found = sprites.sprites(storage.path(tmp_path), grouping.series(rows))
  assert sum(len(c['sprite']) for c in found.cells) <= 200_000
  assert (found.down, found.side, found.shrink) == (1, 64, 4)
  storage.write_json(tmp_path / 'report' / 'metrics.json', rows)
  text = fake_run.text_of(page.write(tmp_path).read_text())
  assert 'Images 0 to 9 of each model, sampler, number of steps and w' in text
  assert 'at 64 pixels, made 4 times smaller' in text


def test_a_cell_cannot_lead_out_of_its_folder(tmp_path):
  folder = storage.path(tmp_path)
  file = io.BytesIO()
  np.savez(file, pixels=np.zeros((40, 8, 8, 1), np.uint8))
  storage.write_bytes(folder / 'evaluation' / 'secret.npz', file.getvalue())
  storage.write_bytes(folder / 'evaluation' / 'cells' / 'fine-1,w=0.5.npz', file.getvalue())
  assert sprites.pixels(folder, 'fine-1,w=0.5') is not None
  for cell in ('../secret', '..', '/etc/passwd', '', None, 7):
    assert sprites.pixels(folder, cell) is None


def test_a_round_shows_itself_at_its_own_steps(tmp_path):
  rows = [
    {'model': 'student', 'stage': 'progressive', 'sampler': 'ddim', 'num_steps': n, 'w': 1.0,
     'round': '02_progressive_4', 'cell': f'c{n}'}
    for n in (2, 4, 8)
  ]  # fmt: skip
  folder = fake_run.workdir(storage.path(tmp_path), rows)
  data = fake_run.embedded(page.write(folder).read_text())
  (entry,) = data['rounds']
  ((w, index),) = entry['cells']
  assert w == 1.0 and data['cells'][index]['num_steps'] == 4
