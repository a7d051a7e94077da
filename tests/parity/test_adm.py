"""ADM's U-Net equals a second implementation in torch, with random weights."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import adm as convert
from gdistill.models import unet

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
pytestmark = pytest.mark.parity
nn = torch.nn

SIZE, CLASSES, GROUPS = 8, 5, 8
SETTINGS = dict(
  channels=32, multipliers=(1, 2, 2), num_blocks=2, attention_resolutions=(4,),
  num_classes=CLASSES, emb_channels=128, heads=None, head_dim=16, groups=GROUPS,
  **convert.CONVENTIONS,
)  # fmt: skip
TIMES = np.array([0.0, 250.0, 613.0, 999.0], np.float32)
LABELS = np.array([0, 4, 2, 3])


class Residual(nn.Module):
  def __init__(self, inside, outside, emb, resample=None):
    super().__init__()
    self.resample = {
      None: lambda h: h, 'down': lambda h: nn.functional.avg_pool2d(h, 2),
      'up': lambda h: nn.functional.interpolate(h, scale_factor=2, mode='nearest'),
    }[resample]  # fmt: skip
    norms = [nn.GroupNorm(GROUPS, inside), nn.GroupNorm(GROUPS, outside)]
    convs = [nn.Conv2d(inside, outside, 3, padding=1), nn.Conv2d(outside, outside, 3, padding=1)]
    self.in_layers = nn.Sequential(norms[0], nn.SiLU(), convs[0])
    self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * outside))
    self.out_layers = nn.Sequential(norms[1], nn.SiLU(), nn.Identity(), convs[1])
    self.skip_connection = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

  def forward(self, x, emb):
    h = self.in_layers[2](self.resample(self.in_layers[1](self.in_layers[0](x))))
    scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
    h = self.out_layers[0](h) * (1 + scale) + shift
    return self.skip_connection(self.resample(x)) + self.out_layers[1:](h)


class Attention(nn.Module):
  def __init__(self, channels, order):
    super().__init__()
    self.norm = nn.GroupNorm(GROUPS, channels)
    self.qkv = nn.Conv1d(channels, 3 * channels, 1)
    self.proj_out = nn.Conv1d(channels, channels, 1)
    self.order, self.dim = order, 16

  def forward(self, x, emb):
    c = x.shape[1]
    joint, outputs = self.qkv(self.norm(x.flatten(2))), []
    for head in range(c // self.dim):
      if self.order == 'new':  # [q of all heads, k of all heads, v of all heads]
        starts = [part * c + head * self.dim for part in range(3)]
      else:  # [q, k, v of the first head, q, k, v of the second, ...]
        starts = [(3 * head + part) * self.dim for part in range(3)]
      q, k, v = (joint[:, start : start + self.dim] for start in starts)
      scores = torch.einsum('bdi,bdj->bij', q, k) / math.sqrt(self.dim)
      outputs.append(torch.einsum('bij,bdj->bdi', scores.softmax(-1), v))
    return x + self.proj_out(torch.cat(outputs, 1)).reshape(x.shape)


class Twin(nn.Module):
  """ADM's U-Net in torch, after the appendix of its paper, with the names of published weights."""

  def __init__(self, order, classes=True):
    super().__init__()
    base, emb = SETTINGS['channels'], SETTINGS['emb_channels']
    self.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
    if classes:
      self.label_emb = nn.Embedding(CLASSES, emb)
    entries, channels, side, now = [[nn.Conv2d(3, base, 3, padding=1)]], [base], SIZE, base
    last = len(SETTINGS['multipliers']) - 1

    def step(inside, outside):
      attends = side in SETTINGS['attention_resolutions']
      return [Residual(inside, outside, emb)] + [Attention(outside, order)] * attends

    for level, multiplier in enumerate(SETTINGS['multipliers']):
      for _ in range(SETTINGS['num_blocks']):
        entries.append(step(now, base * multiplier))
        now = base * multiplier
        channels.append(now)
      if level != last:
        entries.append([Residual(now, now, emb, 'down')])
        channels.append(now)
        side //= 2
    self.input_blocks = nn.ModuleList(map(nn.ModuleList, entries))
    self.middle_block = nn.ModuleList(
      [Residual(now, now, emb), Attention(now, order), Residual(now, now, emb)]
    )
    entries = []
    for level, multiplier in reversed(list(enumerate(SETTINGS['multipliers']))):
      for i in range(SETTINGS['num_blocks'] + 1):
        entries.append(step(now + channels.pop(), base * multiplier))
        now = base * multiplier
        if level and i == SETTINGS['num_blocks']:
          entries[-1].append(Residual(now, now, emb, 'up'))
          side *= 2
    self.output_blocks = nn.ModuleList(map(nn.ModuleList, entries))
    self.out = nn.Sequential(nn.GroupNorm(GROUPS, now), nn.SiLU(), nn.Conv2d(now, 6, 3, padding=1))

  def forward(self, x, t, label):
    half = SETTINGS['channels'] // 2
    angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    emb = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], -1))
    if hasattr(self, 'label_emb'):
      emb = emb + self.label_emb(label)
    h, kept = self.input_blocks[0][0](x), []
    kept.append(h)
    for entry in self.input_blocks[1:]:
      for layer in entry:
        h = layer(h, emb)
      kept.append(h)
    for layer in self.middle_block:
      h = layer(h, emb)
    for entry in self.output_blocks:
      h = torch.cat([h, kept.pop()], 1)
      for layer in entry:
        h = layer(h, emb)
    return self.out(h)


def twin_and_state(order, **kwargs):
  torch.manual_seed(0)
  twin = Twin(order, **kwargs)
  for name, value in twin.named_parameters():
    spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
    torch.nn.init.normal_(value, float(value.ndim == 1 and name.endswith('weight')), spread)
  return twin, {name: value.detach().numpy() for name, value in twin.state_dict().items()}


def network():
  return unet.UNet(**SETTINGS, time=lambda logsnr: logsnr)


def ours(params, x):
  with jax.default_matmul_precision('highest'):
    return np.array(jax.jit(network().apply)(
      {'params': params}, x, TIMES, {'label': LABELS}, jnp.zeros(4)
    ))  # fmt: skip


def theirs(twin, x):
  given = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
  with torch.no_grad():
    out = twin(given, torch.from_numpy(TIMES), torch.from_numpy(LABELS))
  return np.moveaxis(out[:, :3].numpy(), 1, -1)


def distance(found, expected):
  assert expected.std() > 0.1
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def images():
  return np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize('order', ['new', 'legacy'])
def test_published_weights_compute_the_same(order):
  twin, state = twin_and_state(order)
  expected = theirs(twin, images())
  other = {'new': 'legacy', 'legacy': 'new'}[order]
  found, mistaken = (
    ours(convert.params_from(state, network(), SIZE, o), images()) for o in (order, other)
  )
  assert distance(found, expected) <= 1e-4
  assert distance(mistaken, expected) > 1e-3


def test_a_network_without_classes_is_one_whose_labels_say_nothing():
  twin, state = twin_and_state('new', classes=False)
  params = convert.params_from(state, network(), SIZE, 'new')
  assert distance(ours(params, images()), theirs(twin, images())) <= 1e-4


def test_parameters_are_those_of_the_network_and_what_is_not_is_named():
  _, state = twin_and_state('new')
  params = convert.params_from(state, network(), SIZE, 'new')
  one, cond = jnp.ones(1), {'label': jnp.zeros(1, int)}
  shapes = jax.eval_shape(network().init, jax.random.key(0), images()[:1], one, cond, one)['params']
  assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, shapes)
  short = {name: a for name, a in state.items() if name != 'middle_block.1.qkv.bias'}
  with pytest.raises(errors.ConfigError, match=r'1 missing: middle_block.1.qkv.bias \(192,\)$'):
    convert.params_from(short, network(), SIZE, 'new')
  with pytest.raises(errors.ConfigError, match=r'1 not expected: surplus \(1,\)$'):
    convert.params_from({**state, 'surplus': np.zeros(1)}, network(), SIZE, 'new')


@pytest.mark.parametrize(
  ('settings', 'size', 'millions'),
  [(convert.ADM_64, 64, 296), (convert.ADM_256, 256, 554)],
  ids=['64', '256'],
)
def test_the_published_settings_have_the_published_counts(settings, size, millions):
  # The table of hyperparameters in arXiv 2105.05233 counts the biases of k too; ours have none.
  net, one = unet.UNet(**settings), jnp.ones(1)
  z, cond = jnp.zeros((1, size, size, 3)), {'label': jnp.zeros(1, int)}
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), z, one, cond, one))['params']
  count = sum(a.size for a in jax.tree.leaves(shapes))
  biases = sum(part['k']['kernel'].shape[1] for name, part in shapes.items() if 'attn' in name)
  assert round((count + biases) / 1e6) == millions
