"""`pose2seg batch`: many video files, worker processes, and a job that goes on after any interruption.

settings, command   the flags and the command
plan, probe         which files there are, what is in them, what becomes of each
machine, worker     how many processes; one of them
file, video, state  one file in segments; its video; what of a job is done
progress, report    the live table; the report at the end
"""
