"""The shell command `gdistill`: parses the arguments, runs one command, returns an exit code.

command.py lists the commands and calls `main(argv)` in the file of the chosen command. All commands
use command_line.py and exit_codes.py; some also use config_file.py, out_folder.py, held_workdir.py
or files that define shared flags, *_flags.py. The commands edit, inpaint and transfer also use
source_pictures.py and picture_job.py. Modules of gdistill/cli may import every other package of
gdistill. Outside gdistill/cli, only main.py imports modules of gdistill/cli.
"""
