"""The paper's tables, made again: `training.reproduce` is the command.

published   the printed figures and where they stand
plan        which networks, data and settings each table needs
cells       training and measuring them, so that an interruption costs little
layout      the result as a table for people, Markdown and JSON
frame_rates pictures a second
"""
