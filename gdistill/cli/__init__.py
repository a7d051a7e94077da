"""The shell command `gdistill`: parses the arguments, runs one command, returns an exit code.

command.py lists the commands and calls `main(argv)` in the file of the chosen command. All commands
share command_line.py and exit_codes.py; some share config_file.py, out_folder.py, held_workdir.py
or a file of flags, *_flags.py. edit, inpaint and transfer share source_pictures.py and
picture_job.py. Modules of gdistill/cli may import every other package of gdistill. Outside
gdistill/cli, only main.py imports modules of gdistill/cli.
"""
