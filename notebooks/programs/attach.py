#!/usr/bin/env python3
"""attach: connects this terminal, or these pipes, to a container's own stdin, stdout and stderr.

    attach.py BUNDLE/attach

The shim listens at that socket. It sends each piece of output as one packet, with a byte in front
that says which stream it is: 2 for stdout, 3 for stderr. What it gets, it writes into the
container's stdin.
"""

import os
import select
import socket
import sys

shim = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
shim.connect(sys.argv[1])
sources = [0, shim]
while True:
    ready, _, _ = select.select(sources, [], [])
    if 0 in ready:
        data = os.read(0, 8192)
        if data:
            shim.send(data)
        else:  # our input has ended; the container's goes on
            sources.remove(0)
    if shim in ready:
        packet = shim.recv(8193)
        if not packet:  # the container has ended
            break
        os.write(packet[0] - 1, packet[1:])
