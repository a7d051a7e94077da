"""Copies autoencoder and text encoder into the workdir, so that sampling needs only the workdir."""

import dataclasses
import os
import tempfile

from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.frozen import networks as frozen_networks
from gdistill.recipe import settings as recipes
from gdistill.workdir import storage

# config.json of the autoencoder is written last, so config.json exists only if all copies are
# complete.
_LAST = f'{frozen_networks.AUTOENCODER}/config.json'


def keep(frozen: frozen_networks.Frozen, workdir: storage.epath.Path) -> None:
  """Copies the frozen networks into the workdir, unless the workdir already has all copies."""
  if _kept(workdir):
    return
  with tempfile.TemporaryDirectory(dir=storage.temporary_root()) as folder:
    if frozen.text:
      texts.write(folder, frozen.text)
    autoencoders.write(os.path.join(folder, frozen_networks.AUTOENCODER), frozen.autoencoder)
    for name in sorted(storage.files(folder), key=lambda name: name == _LAST):
      storage.write_bytes(workdir / name, storage.read_bytes(os.path.join(folder, name)))


def own_paths(latents: recipes.Latents, workdir: storage.epath.Path) -> recipes.Latents:
  """Returns the settings `latents`; if the workdir has copies of the frozen networks, the paths in
  these settings are replaced by the paths of the copies.
  """
  if not latents.autoencoder or not _kept(workdir):
    return latents
  paths = {'autoencoder': os.fspath(workdir / frozen_networks.AUTOENCODER)}
  if latents.text:
    paths['text'] = os.fspath(workdir)
  return dataclasses.replace(latents, **paths)


def _kept(workdir: storage.epath.Path) -> bool:
  return storage.exists(workdir / _LAST)
