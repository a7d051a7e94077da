"""How large files, functions and rooms may be, and what the __init__.py of a room holds."""

import measure_rooms

FILES = measure_rooms.read()


def test_no_file_is_longer_than_400_lines():
  assert measure_rooms.LONGEST_FILE == 400
  assert measure_rooms.long_files(FILES) == []


def test_no_function_is_longer_than_60_lines():
  assert measure_rooms.LONGEST_FUNCTION == 60
  assert measure_rooms.long_functions(FILES) == []


def test_at_most_four_files_lie_loose():
  loose = measure_rooms.loose_files(FILES)
  assert len(loose) <= measure_rooms.MOST_LOOSE == 4, loose


def test_the_init_of_every_room_is_a_docstring_of_three_to_eight_lines():
  assert measure_rooms.docstring_faults(FILES) == []
