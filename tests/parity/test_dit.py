"""DiT equals diffusers' and a second implementation in torch, with random weights."""

import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill.convert import dit as convert
from gdistill.models import dit

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
diffusers = pytest.importorskip('diffusers', reason='bash launch/test.sh parity installs diffusers')
pytestmark = pytest.mark.parity

WIDTH, DEPTH, HEADS, PATCH, CLASSES, CHANNELS, SIZE = 48, 3, 4, 2, 5, 3, 12
SETTINGS = dict(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, num_classes=CLASSES)
TIMES = np.array([0.0, 17.0, 500.0, 999.0], np.float32)
LABELS = np.array([0, 4, -1, 2])


def linear(inside, outside):
  return torch.nn.Linear(inside, outside)


class Block(torch.nn.Module):
  def __init__(self):
    super().__init__()
    nn = torch.nn
    self.attn = nn.ModuleDict({'qkv': linear(WIDTH, 3 * WIDTH), 'proj': linear(WIDTH, WIDTH)})
    self.mlp = nn.ModuleDict({'fc1': linear(WIDTH, 4 * WIDTH), 'fc2': linear(4 * WIDTH, WIDTH)})
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), linear(WIDTH, 6 * WIDTH))

  def forward(self, h, c):
    shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
    b, n, _ = h.shape
    a = self.attn['qkv'](norm(h) * (1 + scale1) + shift1)
    q, k, v = a.reshape(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
    h = h + gate1 * self.attn['proj']((weights @ v).transpose(1, 2).reshape(b, n, WIDTH))
    m = torch.nn.functional.gelu(
      self.mlp['fc1'](norm(h) * (1 + scale2) + shift2), approximate='tanh'
    )
    return h + gate2 * self.mlp['fc2'](m)


class Twin(torch.nn.Module):
  """DiT in torch, after its paper, with the names of the published weights."""

  def __init__(self, channels_out):
    super().__init__()
    nn = torch.nn
    self.x_embedder = nn.ModuleDict({'proj': nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)})
    mlp = nn.Sequential(linear(256, WIDTH), nn.SiLU(), linear(WIDTH, WIDTH))
    self.t_embedder = nn.ModuleDict({'mlp': mlp})
    self.y_embedder = nn.ModuleDict({'embedding_table': nn.Embedding(CLASSES + 1, WIDTH)})
    self.blocks = nn.ModuleList([Block() for _ in range(DEPTH)])
    self.final_layer = nn.ModuleDict({
      'linear': linear(WIDTH, PATCH * PATCH * channels_out),
      'adaLN_modulation': nn.Sequential(nn.SiLU(), linear(WIDTH, 2 * WIDTH)),
    })  # fmt: skip

  def forward(self, x, t, label):
    h = self.x_embedder['proj'](x)
    b, _, rows, columns = h.shape
    f = 10_000.0 ** (-torch.arange(WIDTH // 4) / (WIDTH / 4))
    places = torch.zeros(WIDTH, rows, columns)
    quarters = places.split(WIDTH // 4)
    for quarter, part, axis in zip(quarters, 2 * (torch.sin, torch.cos), 'ccrr', strict=True):
      place = torch.arange(columns)[None, :] if axis == 'c' else torch.arange(rows)[:, None]
      quarter.copy_(part(f[:, None, None] * place).expand_as(quarter))
    h = (h + places).flatten(2).transpose(1, 2)
    f = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    features = torch.cat([torch.cos(t[:, None] * f), torch.sin(t[:, None] * f)], -1)
    c = self.t_embedder['mlp'](features) + self.y_embedder['embedding_table'](label)
    for block in self.blocks:
      h = block(h, c)
    shift, scale = self.final_layer['adaLN_modulation'](c)[:, None].chunk(2, -1)
    h = self.final_layer['linear'](norm(h) * (1 + scale) + shift)
    h = h.reshape(b, rows, columns, PATCH, PATCH, -1)
    return torch.einsum('byxpqc->bcypxq', h).reshape(b, -1, rows * PATCH, columns * PATCH)


def norm(h):
  return torch.nn.functional.layer_norm(h, (WIDTH,), eps=1e-6)


def ours(params, x, **kwargs):
  net = dit.DiT(**SETTINGS, **kwargs, time=lambda logsnr: logsnr)
  with jax.default_matmul_precision('highest'):
    return net.apply(
      {'params': params}, jnp.asarray(x), jnp.asarray(TIMES), {'label': jnp.asarray(LABELS)},
      jnp.zeros(4),
    )  # fmt: skip


def close(found, theirs):
  expected = np.moveaxis(theirs.detach().numpy(), 1, -1)
  assert expected.std() > 0.1
  assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def images():
  return np.random.default_rng(0).normal(size=(4, SIZE, SIZE, CHANNELS)).astype(np.float32)


def given(x):
  return torch.from_numpy(np.moveaxis(x, -1, 1).copy()), torch.from_numpy(TIMES)


@pytest.mark.parametrize('learned_sigma', [False, True])
def test_the_original_layout_computes_the_same(learned_sigma):
  torch.manual_seed(0)
  twin = Twin(CHANNELS * (1 + learned_sigma))
  for value in twin.parameters():
    torch.nn.init.normal_(value, 0.0, 0.15)
  state = {name: value.detach().numpy() for name, value in twin.state_dict().items()}
  x = images()
  found = ours(convert.params_from(state), x, learned_sigma=learned_sigma)
  labels = torch.from_numpy(np.where(LABELS < 0, CLASSES, LABELS))
  close(found, twin(*given(x), labels)[:, :CHANNELS])


def test_the_layout_of_diffusers_computes_the_same():
  net = diffusers.DiTTransformer2DModel(
    HEADS, WIDTH // HEADS, CHANNELS, 2 * CHANNELS, DEPTH, sample_size=SIZE, patch_size=PATCH,
    num_embeds_ada_norm=CLASSES, norm_eps=1e-6,
  ).eval()  # fmt: skip
  shapes = jax.eval_shape(
    dit.DiT(**SETTINGS, learned_sigma=True).init, jax.random.key(0), images(), TIMES,
    {'label': LABELS}, TIMES,
  )['params']  # fmt: skip
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda a: (rng.normal(size=a.shape) * 0.15).astype(np.float32), shapes)
  state = convert.state_from(params, 'diffusers', SIZE // PATCH)
  net.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
  assert convert.heads_from(net.config, params) == HEADS
  x = images()
  found = ours(params, x, learned_sigma=True, freq_shift=1.0)
  labels = torch.from_numpy(np.where(LABELS < 0, CLASSES, LABELS))
  close(found, net(*given(x), labels).sample[:, :CHANNELS])
