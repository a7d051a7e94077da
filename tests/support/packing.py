"""Packs a folder of pictures into an archive, with its links."""

import os
import stat
import tarfile
import zipfile

KINDS = 'zip', 'tar', 'tar.gz'


def packed(path, archive, top=''):
  """Packs the folder `path` into a zip or tar archive, under names that begin with `top`."""
  files = [f for f in sorted(path.rglob('*')) if f != archive]
  if archive.suffix == '.zip':
    with zipfile.ZipFile(archive, 'w') as z:
      for file in files:
        name = f'{top}{file.relative_to(path)}'
        if file.is_symlink():
          link = zipfile.ZipInfo(name)
          link.external_attr = (stat.S_IFLNK | 0o777) << 16
          z.writestr(link, os.readlink(file))
        else:
          z.write(file, name)
    return archive
  with tarfile.open(archive, 'w:gz' if archive.suffix == '.gz' else 'w') as t:
    for file in files:
      t.add(file, f'{top}{file.relative_to(path)}', recursive=False)
  return archive
