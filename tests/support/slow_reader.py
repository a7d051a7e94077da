"""Lists what a person expects a folder of pictures to hold: slow, simple, and without gdistill."""

import dataclasses
import os

READ = (
  '.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.avif',
)  # fmt: skip
UNREAD = ('.heic', '.svg', '.psd', '.jxl', '.tga', '.nef')
TABLES = ('metadata.jsonl', 'metadata.csv', 'captions.csv')
SYSTEM = ('__macosx', 'thumbs.db', 'desktop.ini', '@eadir')
MOST_ENLARGED = 4


@dataclasses.dataclass
class Expected:
  """What a person expects: `pictures` is {name: (class or caption, real path)}.

  `passed` is {reason: names of what is passed over for that reason}. If the whole folder is to be
  refused, the error line has one of the words in `refused`.
  """

  pictures: dict = dataclasses.field(default_factory=dict)
  passed: dict = dataclasses.field(default_factory=dict)
  refused: list = dataclasses.field(default_factory=list)

  def passes(self, reason, name):
    self.passed.setdefault(reason, set()).add(name)

  def refuses(self, word):
    self.refused.append(word)


def hidden(name):
  return name.startswith('.') or name.lower() in SYSTEM


def is_read(name):
  return name.lower().endswith(READ)


def seen(root, closed=False):
  """Returns [(parts of the name, 'file', 'folder' or 'broken', real path)] below `root`.

  Links are followed, but not back to a folder above. In a `closed` folder, as in an archive, a link
  that leads out of `root` is broken.
  """
  root, found = os.path.realpath(root), []

  def look(folder, parts, above):
    for name in sorted(os.listdir(folder)):
      path = os.path.join(folder, name)
      real = os.path.realpath(path)
      out = os.path.islink(path) and (
        os.readlink(path)[0] == '/' or not f'{real}/'.startswith(f'{root}/')
      )
      if hidden(name) or real in above:
        continue
      if not os.path.exists(path) or (closed and out):
        found.append(((*parts, name), 'broken', real))
      elif os.path.isdir(path):
        found.append(((*parts, name), 'folder', real))
        look(path, (*parts, name), (*above, real))
      else:
        found.append(((*parts, name), 'file', real))

  look(root, (), (root,))
  return found


def too_small(drawn, size):
  return drawn.upright is not None and min(drawn.upright.shape[:2]) * MOST_ENLARGED < size


def classes(root, truth, size, split, closed=False, held_out=False):
  """Returns the pictures of <split>/<class>/; `truth` is {real path: the drawn picture}."""
  top = tuple(split.split('/')) if split else ()
  out, folders = Expected(), set()
  for parts, kind, real in seen(root, closed):
    name, below = '/'.join(parts), parts[len(top) :]
    if parts[: len(top)] != top or not below:
      if kind == 'file' and len(parts) == 1 and is_read(name) and not held_out:
        out.passes('loose', name)
      continue
    if len(below) == 1 and kind == 'folder':
      folders.add(below[0])
    if kind == 'broken' and (is_read(name) or (len(below) == 1 and not held_out)):
      out.refuses(name)  # a picture or a class that is promised and not there
    elif kind == 'broken':
      out.passes('link', name)
    if kind != 'file':
      continue
    if not is_read(name):
      out.passes('unread' if name.lower().endswith(UNREAD) else 'other', name)
    elif len(below) == 1:
      out.passes('loose', name)
    elif len(below) > 2:
      out.passes('deep', name)
    elif too_small(truth[real], size):
      out.passes('small', name)
    else:
      out.pictures[name] = below[0], real
  for empty in sorted(folders - {found for found, _ in out.pictures.values()}):
    out.passes('empty', '/'.join((*top, empty))) if held_out else out.refuses(empty)
  if not out.pictures:
    out.refuses('no pictures')
  return out


def one_line(text):
  """Returns a caption: the whole text, with spaces for line ends."""
  lines = text.replace('\r', '\n').split('\n')
  return ' '.join(filter(None, (line.strip().strip('\ufeff').strip() for line in lines)))


def readable(data):
  """Returns the text in the bytes `data`, or None if they are no text in UTF-8."""
  try:
    return None if b'\0' in data else data.decode()
  except UnicodeDecodeError:
    return None


def pictures(root, truth, size):
  """Returns all pictures of a folder and its subfolders, without captions."""
  out = Expected()
  for parts, kind, real in seen(root):
    name = '/'.join(parts)
    if kind == 'broken':
      out.refuses(name) if is_read(name) else out.passes('link', name)
    elif kind == 'file' and not is_read(name):
      out.passes('unread' if name.lower().endswith(UNREAD) else 'other', name)
    elif kind == 'file' and too_small(truth[real], size):
      out.passes('small', name)
    elif kind == 'file':
      out.pictures[name] = '', real
  if not out.pictures:
    out.refuses('no pictures')
  return out


def captioned(root, truth, size, tables):
  """Returns the pictures of a folder that have captions.

  `tables` is {name of a table: its rows (file_name, text), or None if the table is damaged}.
  """
  out = pictures(root, truth, size)
  every = set(out.pictures) | out.passed.get('small', set())
  beside = {name: os.path.splitext(os.path.join(root, name))[0] + '.txt' for name in every}
  named = [name for name in TABLES if name in tables]
  known = {}
  if named and tables[named[0]] is None:
    out.refuses(named[0])
  elif named:
    known = {os.path.normpath(name): one_line(text) for name, text in tables[named[0]]}
    for name in set(known) - every:
      out.passes('no picture', name)
  else:
    for name in out.pictures:
      if not os.path.exists(beside[name]):
        continue
      with open(beside[name], 'rb') as f:
        text = readable(f.read())
      if text is None:
        out.refuses(os.path.basename(beside[name]))
      known[name] = one_line(text or '')
  used = {os.path.realpath(file) for file in beside.values()}
  used |= {os.path.realpath(os.path.join(root, name)) for name in tables}
  others = out.passed.pop('other', set())
  for name in others:
    if os.path.realpath(os.path.join(root, name)) not in used:
      out.passes('other', name)
  for name in list(out.pictures):
    if not known.get(name):
      out.passes('no caption', name)
      del out.pictures[name]
    else:
      out.pictures[name] = known[name], out.pictures[name][1]
  if not out.pictures:
    out.refuses('has a caption')
  return out
