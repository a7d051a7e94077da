"""How the files beside this one were made, by the version whose format they have; not run again.

A leaf's numbers are a formula of its name and their places, so that what is read can be checked
against no file: (i mod 251 - 125) / 2^(1 + crc32(name) mod 8), exact in every float.
"""

import pathlib
import sys
import zlib

import jax
import numpy as np

from gdistill.cli import edge
from gdistill.published import exporting
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.training import step as train_step
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import state as states
from gdistill.workdir import step_checkpoints


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """What a leaf of this name holds."""
  places = np.arange(int(np.prod(shape)), dtype=np.int64)
  return ((places % 251 - 125) / 2.0 ** (1 + zlib.crc32(name.encode()) % 8)).reshape(shape)


def filled(tree):
  """The tree with the numbers of each leaf, in its dtype."""
  leaves, treedef = jax.tree.flatten(tree)
  made = [
    np.asarray(numbers(name, leaf.shape)).astype(leaf.dtype)
    for name, leaf in zip(states.names(tree), leaves, strict=True)
  ]
  return treedef.unflatten(made)


def recipe() -> recipes.Recipe:
  """The digits at a size that a repository can hold, in the settings that diffusers has."""
  config = edge.load_config('configs/digits.py:tiny', [])
  config['model'].update(
    channels=4, multipliers=(1,), emb_channels=16, w_features=4, groups=2, w_scale=1000.0
  )
  return reading.from_config(config)


def state():
  """A round's state, as a step holds it."""
  made = recipe()
  net = networks.build(made.model, takes_w=True, noise_settings=made.noise)
  params = networks.initial_params(net, made.model, jax.random.key(0))
  return filled(states.create(params, train_step.optimizer(made.guidance), True))


def card():
  """What a finished round of one step says of itself."""
  made = recipe()
  plain = reading.to_dict(made)
  return {
    'stage': 'progressive', 'num_steps': 1, 'sampler': 'deterministic', 'takes_w': True,
    'guided': False, 'p_uncond': 0.0, 'null_label': -1, 'w_min': 0.0, 'w_max': 4.0,
    'clip_x_hat': True, 'predict': 'v', 'model': plain['model'], 'noise': plain['noise'],
    'class_names': [str(i) for i in range(10)], 'latents': None, 'teacher': '00_teacher',
    'licence': None, 'config': plain,
  }  # fmt: skip


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  step_checkpoints.save_step(folder / 'steps', 7, state())
  finished_rounds.finish(folder / 'round', state().params, card())
  exporting.run(folders.read_folder(folder / 'round'), folder / 'export')


if __name__ == '__main__':
  main()
