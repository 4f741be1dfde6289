"""`--layer`: per-person layers for editing and privacy (docs/layers.md).

options         what may be asked for, and what its text means
alpha           alphas of a frame, made once and shared by all layers
cover           which regions stay hidden although nobody was found there
pictures        what each kind of layer paints
presence_map    where people were, over time
sinks           layers written to video files and pictures
"""
