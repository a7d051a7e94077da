"""Compares examples with what earlier versions of gdistill recorded, which read some otherwise.

Earlier versions recognised a picture by its name and the length of its file, ignored EXIF
orientation, and enlarged pictures by any factor. What they began is continued only if no picture
would be read otherwise.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from gdistill.data import headers
from gdistill.data import pictures
from gdistill.data import source

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')  # the pictures that earlier versions read
SMALL = 'below a quarter of the side, which were enlarged and are now passed over'
_OTHERWISE = 'earlier versions of gdistill read otherwise: '
_AT_A_TIME = 256  # number of pictures that are read ahead


def as_recorded(
  found: tuple[source.Source, ...],
  recorded: str,
  sampled: Sequence[str] = (),
  say: Callable[[str], None] = lambda line: None,
) -> tuple[source.Source, ...]:
  """Returns sources with the fingerprints of earlier versions of gdistill, if that is allowed.

  The sources are returned as they are, unless `recorded` is the fingerprint that earlier versions
  gave the first source. A source gets the fingerprint of earlier versions if these versions read
  all its pictures to the same pixels. For that, all its picture files are read, unless its
  fingerprint by samples of bytes is still that in `sampled`, which a later start recorded. If the
  first source cannot get its earlier fingerprint, its field `otherwise` says why. `say(line)` tells
  the user that pictures are read.
  """
  first = found[0]
  if recorded in ('', first.fingerprint) or first.before().fingerprint != recorded:
    return found
  out = []
  for one, known in zip(found, (*sampled, '', ''), strict=False):
    why = ''
    if known and known != one.fingerprint and one is first:
      why = 'the bytes of its pictures were changed since the last start'
    elif known != one.fingerprint:
      say(f'an earlier version of gdistill began this: its {len(one):,} pictures are looked at')
      why = otherwise((one,))
    if why and one is first:
      return dataclasses.replace(first, otherwise=why), *found[1:]
    out.append(one if why else one.before())
  return tuple(out)


def otherwise(found: Sequence[source.Source], poll: Callable[[], None] = lambda: None) -> str:
  """Says how many pictures earlier versions read to other pixels, with examples; '' if none.

  All picture files of the sources are read.
  """
  said, names = dict.fromkeys(one.otherwise for one in found if one.otherwise), {}
  for one in found:
    if not source.can_be_before(one.read):
      continue

    def why(i, one=one):
      data = one.read.file_bytes(i)
      return data and (_small(data, one.shape[0]) or pictures.read_otherwise(data))

    for index, reasons in source.ahead(why, len(one), _AT_A_TIME):
      poll()
      for i, reason in zip(index, reasons, strict=True):
        name = reason and one.read.name(int(i))
        if name and (name.lower().endswith(SUFFIXES) or not one.otherwise):  # else `said` has it
          names.setdefault(reason, []).append(name)
  return '; '.join([*said, *filter(None, [_all_counted(names)])])


def of_names(names: Sequence[str], small: Sequence[str]) -> str:
  """Says which pictures earlier versions passed over or enlarged, for the field `otherwise`.

  `names` are the pictures that are read, and `small` those that are too small. '' if none.
  """
  new = [n for n in names if not n.lower().endswith(SUFFIXES)]
  return _all_counted({pictures.NEW: new, SMALL: list(small)})


def _all_counted(names: Mapping[str, Sequence[str]]) -> str:
  said = '; '.join(_counted(some, reason) for reason, some in names.items() if some)
  return said and f'{_OTHERWISE}{said}'


def _counted(names: Sequence[str], reason: str) -> str:
  return f'{len(names):,} picture{"s" if len(names) > 1 else ""} {reason}, such as {names[0]}'


def _small(data: bytes, size: int) -> str:
  return '' if headers.large_enough([headers.of_bytes(data)], size)[0] else SMALL
