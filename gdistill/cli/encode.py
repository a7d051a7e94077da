"""gdistill encode: encodes a config's pictures and captions once, into a cache that runs share."""

import dataclasses
import sys
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import config_file
from gdistill.cli import exit_codes


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill encode',
    description='Encodes the training pictures of a config, in both flips, and their captions, '
    'into the ArrayRecord files that training reads from latents.cache. If the command is stopped '
    'or killed, repeat it: it resumes and ends with the same digest. Several processes can share '
    'the work. A training run encodes pictures that are missing from its cache.',
    epilog='--config.section.key=value overrides a key of the config.',
  )
  p.add_argument(
    '--config', required=True, help='configs/NAME.py[:VARIANT], or the config.json of a run'
  )
  p.add_argument(
    '--out', default='', help='folder of the cache (default: latents.cache of the config)'
  )
  command_line.add_process_flags(p)
  return p


def main(argv: Sequence[str]) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  args = command_line.parse(parser(), [a for a in argv if a not in overrides])
  return exit_codes.call(lambda: _run(args, overrides), args.debug)


def _run(args, overrides) -> int:
  import jax

  from gdistill import errors
  from gdistill.devices import mesh as meshes
  from gdistill.devices import processes
  from gdistill.frozen import encode
  from gdistill.frozen import networks as frozen_networks
  from gdistill.process import interrupt
  from gdistill.recipe import reading
  from gdistill.training import assemble
  from gdistill.workdir import storage

  recipe = reading.from_config(config_file.load(args.config, overrides))
  if not recipe.latent:
    raise errors.ConfigError(
      'latents.autoencoder is empty: this config trains on pixels, so there is nothing to encode; '
      'give the config of a run on latents'
    )
  out = args.out or recipe.latents.cache
  if not out:
    raise errors.ConfigError('--out is missing, and latents.cache is empty; give --out=FOLDER')
  if not storage.is_local(out):
    raise errors.ConfigError(
      f'--out={out} must be a local folder that all processes see; give a path '
      'on a local or shared disk'
    )
  storage.check_writable('--out', out)
  # The run compares its pictures with those of the cache in its folder of latents.
  recipe = dataclasses.replace(recipe, latents=dataclasses.replace(recipe.latents, cache=out))
  meshes.use_compile_cache()
  meshes.make_cpu_devices(recipe.mesh.cpu_devices)
  processes.start(args.coordinator, args.num_processes, args.process_id)
  run = assemble.Run(recipe)
  frozen_networks.check_fits(run.frozen, recipe.latents, recipe.model)
  with interrupt.Interrupt() as stop:
    done = encode.run(
      run.own_pictures[0], run.frozen, run.latents, run.inpainting, out, stop, verify=True
    )
  if not jax.process_index():
    print(f'{out}: {done.index["count"]:,} pictures, digest {done.index["digest"]}')
  if left_out := done.index.get('left_out'):
    print(
      f'{left_out:,} pictures could not be read or are too small, and are left out', file=sys.stderr
    )
  if done.encoded:
    speed = done.encoded / done.seconds
    print(
      f'{done.encoded:,} pictures encoded in both flips in {done.seconds:.1f} s, {speed:.1f} '
      'pictures per second',
      file=sys.stderr,
    )
  elif not done.shards:
    print('nothing to do: every shard is complete', file=sys.stderr)
  return 0
