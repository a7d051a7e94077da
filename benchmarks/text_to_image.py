"""P19: which share of drawing a picture from a prompt is text encoder, network and decoder?

  python benchmarks/text_to_image.py [--full] [--num_steps=4 --images=1]

The networks have Stable Diffusion 1.5's layers with random parameters: a text encoder, a student
that is called `num_steps` times, and the KL decoder or, in its place, the tiny decoder. Without
--full the widths are a quarter and pictures have 256 pixels a side, which two cores can draw;
--full is for accelerators. The whole is one compiled call, as in `gdistill sample`; the parts are
compiled separately.
"""

import dataclasses
import functools

import common
import jax
import numpy as np
from jax import numpy as jnp

from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.frozen import networks as frozen_networks
from gdistill.models import clip
from gdistill.models import vae
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks


def main() -> None:
  p = common.parser(__doc__)
  p.add_argument('--full', action='store_true', help="Stable Diffusion 1.5's own sizes")
  p.add_argument('--num_steps', type=int, default=4)
  p.add_argument('--images', type=int, default=1)
  args = common.settle(p.parse_args(), devices=1)
  shrink, size = (1, 64) if args.full else (4, 32)
  if args.smoke:
    shrink, size, args.num_steps = 8, 8, 1
  folder, frozen = _networks(shrink, size, args.smoke)
  small = dataclasses.replace(frozen, autoencoder=_autoencoder(vae.Tiny(), 'tiny', 64))
  n = args.images
  seeds, labels, w = np.arange(n), np.zeros(n, np.int32), np.full(n, 6.5)

  def whole(around):
    drawn = common.text_sampler(folder, n, around)
    return lambda: jax.block_until_ready(drawn.draw(seeds, labels, w, args.num_steps))

  ids, mask = (np.repeat(a, n, 0) for a in frozen.tokens(['a photo']))
  z = jnp.zeros((n, *networks.image_shape(folder.settings)))
  text = jax.jit(lambda params: frozen.text_of(params, (ids, mask))['text'])
  hidden = text(frozen.params)
  call = jax.jit(
    lambda params: folder.net.apply(
      {'params': params}, z, jnp.zeros(n), {'label': jnp.asarray(labels), 'text': hidden}, w
    )
  )
  decode = {
    name: jax.jit(functools.partial(around.decode, x=z))
    for name, around in (('decoder', frozen), ('tiny decoder', small))
  }
  around = {'decoder': frozen.params, 'tiny decoder': small.params}
  params = jax.device_put(folder.params)
  taken = common.interleaved(
    {
      'whole': whole(frozen),
      'whole, tiny decoder': whole(small),
      'text': lambda: jax.block_until_ready(text(frozen.params)),
      'network call': lambda: jax.block_until_ready(call(params)),
      **{k: lambda k=k, f=f: jax.block_until_ready(f(around[k])) for k, f in decode.items()},
    },
    args.repeats,
    args.seconds,
  )
  about = f'{n} x {8 * size} pixels, {args.num_steps} calls, widths 1/{shrink}'
  calls = [args.num_steps * t for t in taken['network call']]
  parts = {'text': taken['text'], 'network': calls, 'decoder': taken['decoder']}
  rows = [
    common.row('P19', f'{name} over the whole, {about}', common.ratios(spent, taken['whole']))
    for name, spent in parts.items()
  ]
  tiny = common.ratios(taken['whole, tiny decoder'], taken['whole'])
  rows.append(
    common.row('P19', f'the whole with the tiny decoder over with the own, {about}', tiny)
  )
  common.show(rows, seconds=common.medians(taken))


def _networks(shrink: int, size: int, smoke: bool) -> tuple[folders.Folder, frozen_networks.Frozen]:
  channels = 320 // shrink
  sizes = dict(image_size=size, channels=channels, emb_channels=4 * channels, dtype='float32')
  sizes |= dict(groups=32 // shrink, context_dim=768 // shrink // 12 * 12)
  sizes |= dict(attention_resolutions=(size, size // 2, size // 4))
  if smoke:  # fewer layers compile faster
    sizes |= dict(multipliers=(1, 2), num_blocks=1, attention_resolutions=(size,))
  recipe = common.recipe('stable_diffusion', model=sizes)
  folder = common.folder(recipe, 'progressive')
  width = 768 // shrink // 12 * 12
  tower = clip.Tower(width, 1 if smoke else 12, 12, 4 * width)
  widths = tuple(c // shrink // 4 * 4 for c in (128, 256, 512, 512))
  net = vae.KL(widths=widths, layers=1 if smoke else 2, groups=4 if shrink > 1 else 32)
  kl = _autoencoder(net, 'kl', 64)
  return folder, frozen_networks.Frozen(kl, _text(clip.Text(tower), width))


def _autoencoder(net, kind: str, size: int) -> autoencoders.Autoencoder:
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))['params']
  return autoencoders.Autoencoder(kind, net, common.filled(shapes), 1.0)


def _text(net: clip.Text, width: int) -> texts.TextEncoder:
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 77), jnp.int32))['params']
  params = common.filled(shapes)
  return _Untokenised('clip', net, params, 77, width, 'random', 'random', None, {})


class _Untokenised(texts.TextEncoder):
  """A text encoder whose tokens are the same for every prompt: tokenising is not timed."""

  def tokens(self, prompts):
    return np.ones((len(prompts), 77), np.int32), np.ones((len(prompts), 77), bool), []


if __name__ == '__main__':
  main()
