"""PID 1 of a seat. Runs as root in the seat's new namespaces: `python seat.py NAME COMMAND...`.

It hides what is not the seat's, becomes the seat's user in a child that runs the command, and reaps. Only root could
signal PID 1, and nobody in here is root. Standard library only.
See also: mount_namespaces(7), pts(4).
"""

import os
import pwd
import resource
import subprocess
import sys

ROOM = "/run/uncontained"


def mount(*words):
    subprocess.run(["mount", "--no-mtab", *words], check=True, timeout=20, stdin=subprocess.DEVNULL)


def hide(user):
    """Other people's homes, the machine's sockets and temporary files, and all that belongs to other seats."""
    mine, new = f"{ROOM}/seats/{user.pw_name}", f"{ROOM}/new"
    mount("--bind", f"{mine}/tmp", "/tmp")
    mount("--bind", f"{mine}/tmp", "/var/tmp")
    mount("--bind", f"{mine}/shm", "/dev/shm")
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620,max=64", "devpts", "/dev/pts")
    mount("--bind", "/dev/pts/ptmx", "/dev/ptmx")
    mount("-t", "tmpfs", "-o", "mode=755,size=64k", "homes", "/home")
    os.mkdir(user.pw_dir)
    mount("--bind", f"{mine}/home", user.pw_dir)
    mount("-t", "tmpfs", "-o", "mode=755,size=64k", "run", new)
    for name, source in (("python", f"{ROOM}/python"), ("door", f"{ROOM}/doors/{user.pw_name}")):
        os.makedirs(f"{new}/uncontained/{name}")
        mount("--bind", source, f"{new}/uncontained/{name}")
    mount("--move", new, "/run")  # the other seats' places were below the old one


def become(user):
    """Give up root for good, in this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([user.pw_gid])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.chdir(f"{user.pw_dir}/uncontained")


def main(name, *command):
    user = pwd.getpwnam(name)
    os.umask(0o022)
    hide(user)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            become(user)
            os.execv(command[0], command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
