"""`./lab workshop`: one machine, many learners, each with a Unix user, a server and a lab of their own.

    keeper   on the machine: listens, starts the room, prints the cards, waits, cleans up
    room     PID 1 of the room: a set of namespaces with the seats' users, homes and network in it, and the hub
    hub      JupyterHub in the room: signs people in, starts and stops seats, shows the instructor's page
    proxy    brings each browser's connection to the hub or to a seat
    seat     PID 1 of one seat: namespaces within the room's, then the server as the seat's own user

The room is made as a lab is made. When the keeper ends, however it ends, the room's PID 1 reads end-of-file and
leaves; the kernel takes all processes, mounts, networks and users of the workshop with it. What would outlive it,
the cgroup directories, is in the ledger.
See also: jupyterhub(1), namespaces(7), cgroups(7).
"""
