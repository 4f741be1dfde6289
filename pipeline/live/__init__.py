"""`pose2seg live`: cameras and streams that run for ever.

settings, command   the flags and the command
address             what a source may be, and what its text means
input, source       one opened connection; one source, opened again whenever it ends
srt                 SRT through the program ffmpeg
stream_group        the newest frame of all sources, in turn
run                 sources, stages and outputs of a run, started and stopped together
show                all sources in a window
outputs, recording  sinks with a queue and a thread of their own; files that survive a kill
"""
