"""What is passed over is told in one line: how many files, why, and an example."""

from gdistill.data import passed


def test_files_are_told_by_reason_in_every_case_of_letters():
  over = passed.Passed()
  over.add_files(['b.HEIC', 'a.heic', 'a.heic', 'x/Notes.TXT', 'x/request.json', 'lock.json'])
  assert over.notes('here') == (
    'here: passed over 2 pictures of a format that is not read (such as a.heic), 1 file without '
    'the suffix of a picture (such as x/Notes.TXT)',
  )
  assert over.without(['a.heic', 'b.HEIC', 'x/Notes.TXT']).notes('here') == ()


def test_a_name_with_control_characters_stays_in_its_line():
  over = passed.Passed()
  over.add(passed.LOOSE, ['a\n\x1b[2J.png'])
  assert str(over) == r"1 picture in no class folder (such as 'a\n\x1b[2J.png')"


def test_every_reason_is_told():
  over = passed.Passed()
  reasons = [value for name, value in vars(passed).items() if name.isupper() and name[0] != '_']
  for noun, rest in reasons:
    over.add((noun, rest), ['x', 'y'])
  assert len(reasons) == 13 and all(
    f'2 {noun}s {rest} (such' in str(over) for noun, rest in reasons
  )
