"""`--layer`: per-person layers for editing and privacy (docs/layers.md).

options         what may be asked for, and what its text means
alpha           alphas of a frame, made once and shared by all layers
cover           which regions stay hidden although nobody was found there
covered_frames  frames with their covers, held back if wanted
pictures        what each kind of layer paints
presence_map    where people were, over time
draw_stage      a layer as what viewers and published streams show
hide_stage      people hidden in every picture of a run
files           videos with alpha, mattes, folders of PNG
per_person      a file for each person
sinks           all layers of a run, each into its file
state           what layers remember from frame to frame, as bytes
"""
