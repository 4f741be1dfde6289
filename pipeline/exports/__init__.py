"""Results in the forms of other programs (docs/interop.md).

options             what `--export` may ask for
supervision_result  objects of the supervision library
datasets            folders that annotation tools and trainers read: COCO, CVAT, YOLO
parquet_table       one row per person per frame, in a Parquet file
subtitles           how many people are seen, as subtitles
piped_video         video on standard output
"""
