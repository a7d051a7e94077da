"""Tests of measuring pictures of any origin from the command line: folders, arrays, statistics."""

import json

import numpy as np
import pytest
import stand_in
from PIL import Image

from gdistill.cli import evaluate as command
from gdistill.cli import statistics as statistics_command
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import statistics


@pytest.fixture(autouse=True)
def known(monkeypatch):
  made = lambda name, file='', **options: stand_in.extractor(name, channels=3, spatial='s')
  monkeypatch.setattr(extractors, 'load', made)


def folder(path, pixels):
  path.mkdir()
  for i, p in enumerate(pixels):
    Image.fromarray(p).save(path / f'{i:04d}.png')
  return path


def figures(capsys):
  return json.loads(capsys.readouterr().out)


@pytest.fixture
def sets(tmp_path):
  drawn, real = stand_in.pictures(40, seed=1), stand_in.pictures(50, seed=2)
  np.savez(tmp_path / 'drawn.npz', drawn)
  return folder(tmp_path / 'drawn', drawn), folder(tmp_path / 'real', real), drawn, real


def test_a_folder_an_array_and_made_statistics_give_the_same_figures(sets, tmp_path, capsys):
  drawn, real, drawn_pixels, real_pixels = sets
  made = tmp_path / 'real.npz'
  assert statistics_command.main([f'--source={real}', f'--out={made}', '--extractor=lite0']) == 0
  rows = []
  for pictures in (drawn, f'{drawn}.npz'):
    for against in (real, made):
      out = tmp_path / 'row.json'
      words = [f'--images={pictures}', f'--reference={against}', '--extractor=lite0']
      assert command.main([*words, f'--out={out}']) == 0
      rows.append(figures(capsys))
      assert json.loads(out.read_text()) == rows[-1]
  known = ('fd', 'precision', 'recall', 'kid', 'inception_score', 'reference_digest')
  assert len({tuple(r[k] for k in known) for r in rows}) == 1
  extractor = stand_in.extractor()
  a, b = (statistics.Moments.of(extractors.extract(extractor, p)['f'])
          for p in (drawn_pixels, real_pixels))  # fmt: skip
  assert rows[0]['fd'] == pytest.approx(statistics.frechet_distance(a, b), rel=1e-6)
  assert rows[0]['images'] == 40 and rows[0]['reference_images'] == 50
  assert rows[0]['extractor_digest'] == '0123456789abcdef' and 'jax' in rows[0]['versions']


def test_pictures_that_are_passed_over_are_told_by_each_command_once(sets, tmp_path, capsys):
  drawn, real, *_ = sets
  (drawn / 'deep').mkdir()
  (drawn / 'deep/x.heic').write_bytes(b'x')
  (real / 'y.svg').write_bytes(b'x')
  told = 'passed over 1 picture of a format that is not read (such as'
  more = ['--extractor=lite0', f'--out={tmp_path}/x.npz']
  assert statistics_command.main([f'--source={real}', *more]) == 0
  assert f'--source={real}: {told} y.svg)\n' in capsys.readouterr().err
  more[1:] = [f'--images={drawn}', f'--reference={real}']
  assert command.main(more) == 0
  said = capsys.readouterr().err
  assert f'--images={drawn}: {told} deep/x.heic)\n' in said
  assert f'--reference={real}: {told} y.svg)\n' in said and said.count('passed over') == 2


@pytest.mark.parametrize(
  ('more', 'words'),
  [
    (['--source={}/real', '--most=3'], '--most=3 has no meaning with --source'),
    (['--source={}/real', '--split=held_out'], '--split=held_out has no meaning with --source'),
    (['--source={}/real', '--config.seed=1'], '--config.seed=1 has no meaning with --source'),
    (['--config=configs/digits.py', '--size=8'], '--size=8 has no meaning with --config'),
    (['--source={}/real', '--size=0'], '--size=0 must be at least 1'),
    ([], 'give either --source or --config'),
  ],
)
def test_statistics_refuse_what_they_would_ignore(sets, tmp_path, capsys, more, words):
  given = [m.format(tmp_path) for m in more]
  assert statistics_command.main([*given, f'--out={tmp_path}/x.npz']) == 2
  assert words in capsys.readouterr().err and not (tmp_path / 'x.npz').exists()


def test_few_pictures_are_warned_of(sets, capsys):
  drawn, real, *_ = sets
  assert command.main([f'--images={drawn}', f'--reference={real}']) == 0
  assert 'of 40 pictures is biased' in capsys.readouterr().err


def test_others_statistics_give_their_distance_and_no_more(sets, tmp_path, capsys):
  drawn, _, _, real = sets
  found = extractors.extract(stand_in.extractor(), real)['f'].astype(np.float64)
  np.savez(tmp_path / 'adm.npz', mu=found.mean(0), sigma=np.cov(found, rowvar=False))
  assert command.main([f'--images={drawn}', f'--reference={tmp_path}/adm.npz']) == 0
  row = figures(capsys)
  assert command.main([f'--images={drawn}', f'--reference={tmp_path}/real']) == 0
  assert row['fd'] == pytest.approx(figures(capsys)['fd'], rel=1e-6)
  assert 'precision' not in row and row['reference_split'] == 'unknown'
  np.savez(tmp_path / 'other.npz', mu=np.zeros(3), sigma=np.eye(3))
  assert command.main([f'--images={drawn}', f'--reference={tmp_path}/other.npz']) == 2
  assert (
    'features of inception have 4 values: another network made the file' in capsys.readouterr().err
  )


@pytest.mark.parametrize(
  ('more', 'code', 'words'),
  [
    (['--images={}/drawn'], 2, '--reference is missing'),
    ([], 2, 'give either --workdir'),
    (['--images={}/drawn', '--workdir={}'], 2, 'give either --workdir'),
    (['--images={}/nothing', '--reference={}/real'], 3, 'is neither a folder of pictures nor'),
    (['--images={}/drawn', '--reference={}/nothing'], 3, 'make the file with gdistill statistics'),
    (['--images={}/drawn', '--reference={}/bad.npz'], 3, 'is not readable'),
    (['--images={}/one', '--reference={}/real'], 2, 'holds 1 picture; a distance needs at least 2'),
    (['--images={}/large', '--reference={}/real'], 3, 'are 9 x 9; resize one set'),
    (['--images={}/large', '--reference={}/small.npz'], 3, 'made from pictures of 8 x 8 pixels'),
    (['--workdir={}', '--config.teacher.lr=1'], 2, 'only --config.evaluation.key=value'),
    (['--workdir={}', '--resize=half_pixel'], 2, '--resize=half_pixel has no meaning with --work'),
    (['--workdir={}', '--out=x.json'], 2, '--out=x.json has no meaning with --workdir'),
    (['--images={}/drawn', '--reference={}/real', '--grid=full'], 2, '--grid=full has no meaning'),
    (['--images={}/drawn', '--reference={}/real', '--w=1'], 2, '--w=1.0 has no meaning with --im'),
    (['--images={}/drawn', '--reference={}/real', '--config.seed=1'], 2,
     '--config.seed=1 has no meaning with --images'),
    (['--images={}/drawn', '--reference={}/real', '--clip=clip_b32'], 2, 'is for the CLIP score'),
    (['--images={}/drawn', '--reference={}/real', '--extractor=lite0', '--resize=tf1'], 2,
     '--resize=tf1 is for --extractor=inception; lite0 resizes in its own way'),
    (['--images={}/drawn', '--reference={}/one'], 3, 'holds one picture'),
    (['--images={}/drawn', '--reference={}/nan.npz'], 3, 'mu and sigma must be finite numbers'),
    (['--images={}/drawn', '--reference={}/half.npz'], 3, 'mu_s and sigma_s must be finite'),
    (['--images={}/drawn', '--reference={}/objects.npz'], 3, 'is not readable'),
    (['--images={}/drawn', '--reference={}/flipped.npz'], 3, 'is not readable'),
  ],
)  # fmt: skip
def test_wrong_inputs_get_one_line(sets, tmp_path, capsys, more, code, words):
  folder(tmp_path / 'one', stand_in.pictures(1))
  folder(tmp_path / 'large', stand_in.pictures(4, size=9))
  if '--reference={}/small.npz' in more:
    given = [f'--source={tmp_path}/real', f'--out={tmp_path}/small.npz']
    assert statistics_command.main(given) == 0
    capsys.readouterr()
  (tmp_path / 'bad.npz').write_bytes(b'PK\3\4')
  mu, sigma = np.zeros(4), np.eye(4)
  np.savez(tmp_path / 'nan.npz', mu=mu, sigma=sigma * np.nan)
  np.savez(tmp_path / 'half.npz', mu=mu, sigma=sigma, mu_s=mu)
  np.savez(tmp_path / 'objects.npz', mu=np.array([{}], object), sigma=sigma)
  np.savez(tmp_path / 'flipped.npz', mu=mu, sigma=sigma)
  data = bytearray((tmp_path / 'flipped.npz').read_bytes())
  data[data.index(sigma.tobytes()) + 7] ^= 1
  (tmp_path / 'flipped.npz').write_bytes(data)
  assert command.main([m.format(tmp_path) for m in more]) == code
  err = capsys.readouterr().err
  assert words in err and len(err.strip().splitlines()) == 1, err
