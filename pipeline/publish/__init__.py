"""Results of live runs to other machines: every target has a queue, a thread and a connection of its own.

target              what --publish, --push and --webhook may name, and what of it may be shown
reconnect           a sink whose connection is made again, for ever, with growing waits
lines               JSON lines to TCP and WebSocket
mqtt                JSON lines and events to an MQTT broker
webhook             events of zones to a web server
push, remux         pictures to a video server; the process that holds the connection
virtual_camera      pictures as a camera of this machine
outputs             the flags of a run, checked, and the sinks they ask for
"""
