"""Zones: polygons in the picture, and who enters, leaves or stays in them.

event    what happened: a person came, went or stayed
shape    a zone, and the grammar of --zone and --zones
stage    watches results and adds the events to them
"""
