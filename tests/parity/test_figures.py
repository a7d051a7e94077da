"""FID, IS, KID, precision and recall equal torch-fidelity's, from the same features."""

import pathlib
import sys

import numpy as np
import pytest
import stand_in

from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import inception_score
from gdistill.evaluation.figures import kernel_distance
from gdistill.evaluation.figures import measure
from gdistill.evaluation.figures import precision_recall
from gdistill.evaluation.figures import statistics

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import torch_inception  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope='module')
def theirs():
  return {name: torch_inception.module(f'metric_{name}') for name in ('fid', 'isc', 'kid', 'prc')}


@pytest.fixture(scope='module', params=[(400, 64), (60, 64)], ids=['full', 'singular'])
def features(request):
  """Returns two sets of float32 features, skewed and correlated like the pooled activations."""
  count, size = request.param
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(size, size)) / np.sqrt(size)
  draw = lambda shift: np.maximum(rng.normal(size=(count, size)) @ mix + shift, 0)
  return draw(0.3).astype(np.float32), draw(0.5).astype(np.float32)


def test_the_frechet_distance(theirs, features):
  a, b = features
  moments = [theirs['fid'].fid_features_to_statistics(torch.from_numpy(f.astype(np.float64)))
             for f in features]  # fmt: skip
  expected = theirs['fid'].fid_statistics_to_metric(*moments, False)['frechet_inception_distance']
  found = statistics.frechet_distance(statistics.Moments.of(a), statistics.Moments.of(b))
  # Eigenvalues of a singular covariance are 1e-17 instead of 0, and their roots 3e-9.
  assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('splits', [1, 10])
def test_the_inception_score(theirs, splits):
  logits = np.random.default_rng(1).normal(0, 2, (437, 20)).astype(np.float32)
  expected = theirs['isc'].isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=False)
  found = inception_score.score(logits, splits)
  assert found[0] == pytest.approx(expected['inception_score_mean'], rel=1e-6)
  assert found[1] == pytest.approx(expected['inception_score_std'], rel=1e-6, abs=1e-12)


def test_the_inception_score_of_a_row_is_that_of_their_default_shuffle(theirs):
  extractor, count = stand_in.extractor(), 1237
  rng = np.random.default_rng(1)
  logits = (4 * np.eye(5)[np.arange(count) * 5 // count] + rng.normal(size=(count, 5))).astype('f')
  expected = theirs['isc'].isc_features_to_metric(torch.from_numpy(logits))
  running = measure.Running(extractor, count, 0)
  for index in np.array_split(np.arange(count), 3):
    running.add({'f': logits[index], 'l': logits[index]}, index)
  found = running.measured().score.score()
  assert found[0] == pytest.approx(expected['inception_score_mean'], rel=1e-6)
  assert found[1] == pytest.approx(expected['inception_score_std'], rel=1e-6)


@pytest.mark.parametrize('subsets', [1, 7])
def test_the_kernel_distance(theirs, features, subsets):
  size = 50
  expected = theirs['kid'].kid_features_to_metric(
    *(torch.from_numpy(f.astype(np.float64)) for f in features),
    kid_subsets=subsets, kid_subset_size=size, kid_kernel='poly', kid_kernel_poly_degree=3,
    kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=2020, verbose=False,
  )  # fmt: skip
  mean, std = kernel_distance.distance(*features, subsets=subsets, size=size)
  assert mean == pytest.approx(expected['kernel_inception_distance_mean'], rel=1e-6)
  assert std == pytest.approx(expected['kernel_inception_distance_std'], rel=1e-6, abs=1e-12)


def test_precision_and_recall(theirs, features):
  expected = theirs['prc'].prc_features_to_metric(
    *(torch.from_numpy(f.astype(np.float64)) for f in features),
    prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False,
  )  # fmt: skip
  drawn, real = (precision_recall.Support.of(f, 3) for f in features)
  precision, recall = precision_recall.precision_and_recall(real, drawn)
  assert 0 < precision < 1 and 0 < recall < 1
  assert precision == pytest.approx(expected['precision'], rel=1e-6)
  assert recall == pytest.approx(expected['recall'], rel=1e-6)


def test_the_row_of_two_sets_of_pictures_is_theirs(theirs):
  """Both implementations go from uint8 pictures to figures with the same calibrated weights."""
  from gdistill.convert import inception as convert

  net = torch_inception.network(('2048', 'logits_unbiased'))
  params = convert.params_from({k: v.numpy() for k, v in net.state_dict().items()})
  ours = extractors.of_inception(params, {'sha256': 'random'})
  sets = [torch_inception.pictures(64, 24, seed) for seed in (3, 4)]
  measured, expected = [], []
  for chw in sets:
    found = extractors.extract(ours, np.moveaxis(chw, 1, -1).copy(), batch=8)
    measured.append(measure.Measured.of(ours, found, np.arange(24), 24, 24))
    with torch.no_grad():
      expected.append([f.double() for f in net(torch.from_numpy(chw))])
  support = precision_recall.Support.of(measured[1].ordered_bank, 3)
  row = measure.figures(measured[0], measured[1], support)
  fid = theirs['fid']
  moments = [fid.fid_features_to_statistics(features) for features, _ in expected]
  fid = fid.fid_statistics_to_metric(*moments, False)['frechet_inception_distance']
  assert fid > 1
  # Features agree to about 1e-6. The distance is less exact: it is a difference of their squares.
  assert row['fd'] == pytest.approx(fid, rel=1e-4)
  score = theirs['isc'].isc_features_to_metric(expected[0][1], 1, shuffle=False)
  assert row['inception_score'] == pytest.approx(score['inception_score_mean'], rel=1e-4)


def test_pytorch_fids_two_differences_change_the_figure_and_are_an_option():
  """The half-pixel resize with 2x / 255 - 1 equals torch's interpolate."""
  from gdistill.convert import inception as convert
  from gdistill.models import inception

  net = torch_inception.network(('2048', 'logits_unbiased'))
  params = convert.params_from({k: v.numpy() for k, v in net.state_dict().items()})
  sets = [torch_inception.pictures(32, 24, seed) for seed in (3, 4)]
  figures = {}
  for resize in ('tf1', 'half_pixel'):
    ours = extractors.of_inception(params, {'sha256': 'random'}, resize)
    moments = [
      statistics.Moments.of(
        extractors.extract(ours, np.moveaxis(chw, 1, -1).copy(), batch=8)['2048']
      )
      for chw in sets
    ]
    figures[resize] = statistics.frechet_distance(*moments)
  x = torch.from_numpy(sets[0]).float() / 255
  expected = 2 * torch.nn.functional.interpolate(
    x, size=(299, 299), mode='bilinear', align_corners=False
  ) - 1  # fmt: skip
  found = inception.prepared(np.moveaxis(sets[0], 1, -1), 'half_pixel')
  np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected.numpy(), atol=1e-5, rtol=0)
  print(f'the same pictures and weights: {figures}')
  assert abs(figures['half_pixel'] / figures['tf1'] - 1) > 0.005
