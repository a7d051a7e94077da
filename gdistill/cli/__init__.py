"""The `gdistill` command: arguments in, readable lines and an exit code out.

command.py lists the commands and starts one of them: a file here with `main(argv)`. All commands
share command_line.py and exit_codes.py; some share config_file.py, out_folder.py, held_workdir.py
or a file of flags, *_flags.py. edit, inpaint and transfer share source_pictures.py and
picture_job.py. These modules may import every other package; only main.py imports them.
"""
