"""`pose2seg batch`: many video files, worker processes, and a job that goes on after any interruption.

settings, command   the flags and the command
plan, probe         which files there are, what is in them, what becomes of each
schedule, orders, split    what is done when, what may be asked of a worker, one file that several share
machine, worker, crew, cluster    how many workers; one of them; all of them here, or on a Ray cluster
storage             inputs and outputs that are not on a disk
file, parts, video, state  one file in segments; their outputs; its video; what of a job is done
ahead, detections   what can be done of a segment before it is its turn
progress, report    the live table; the report at the end
"""
