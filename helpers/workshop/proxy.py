"""The proxy before the hub and the seats: reads the head of each request, finds its target, then only carries bytes.

One request a connection: it asks the target to close after the answer, so that no later request can follow a route
that was not looked up for it. Streams and websockets pass as they are.
See also: jupyterhub.proxy.Proxy; RFC 9112 (HTTP/1.1), section 9.6 (Connection: close).
"""

import asyncio
import contextlib
import re
import socket
from urllib.parse import unquote, urlsplit

LONGEST = 65536  # bytes of a request's head
PATIENCE = 60  # s for a client to finish its head, and for a target to take the connection
FORGED = re.compile(rb"^(connection|keep-alive|x-forwarded-\w+|x-real-ip|x-scheme|forwarded) *:", re.I)


class Refused(ValueError):
    """The request is none. The message is a status line."""


def path_of(head):
    """The path of a request head, without its query. Raises Refused."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or not words[1].startswith(b"/"):
        raise Refused("400 Bad Request")
    return unquote(words[1].partition(b"?")[0].decode("latin-1"))


def rewritten(head, client, scheme):
    """The head as the target gets it: who asks, by which scheme, and to close afterwards unless it upgrades."""
    first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    upgrade = any(re.match(rb"upgrade *: *websocket", line, re.I) for line in lines)
    kept = [line for line in lines if not FORGED.match(line)]
    added = [f"X-Forwarded-For: {client}", f"X-Forwarded-Proto: {scheme}",
             f"Connection: {'Upgrade' if upgrade else 'close'}"]  # fmt: skip
    return b"\r\n".join([first, *kept, *(line.encode() for line in added)]) + b"\r\n\r\n"


def target_of(routes, path):
    """The (host, port) for a path: the longest route that it begins with. None when there is none."""
    fitting = [route for route in routes if (path if path.endswith("/") else path + "/").startswith(route)]
    if not fitting:
        return None
    address = urlsplit(routes[max(fitting, key=len)]["target"])
    return address.hostname, address.port


class Carrier:
    """Serves a listening socket. `routes` maps path prefixes to {"target": URL}, as JupyterHub has them."""

    def __init__(self, routes, scheme="http"):
        self.routes, self.scheme, self.server = routes, scheme, None

    async def start(self, listener, ssl=None):
        self.server = await asyncio.start_server(self.serve, sock=listener, ssl=ssl, limit=LONGEST)

    def stop(self):
        if self.server:
            self.server.close()

    async def serve(self, reader, writer):
        """One connection of a client, from its first byte to its last."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            try:
                async with asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    target = target_of(self.routes, path_of(head))
                    if target is None:
                        raise Refused("404 Not Found")
                    theirs, ours = await asyncio.open_connection(*target, limit=LONGEST)
            except asyncio.LimitOverrunError:
                return await say(writer, "431 Request Header Fields Too Large")
            except Refused as refusal:
                return await say(writer, str(refusal))
            except TimeoutError:
                return await say(writer, "504 Gateway Timeout")
            except ConnectionError:
                return await say(writer, "503 Service Unavailable")
            with contextlib.closing(ours):
                ours.write(rewritten(head, writer.get_extra_info("peername")[0], self.scheme))
                await both(pump(reader, ours), pump(theirs, writer))


async def both(upward, downward):
    """Until the target has said everything: a client may fall silent first, and still wants its answer."""
    up = asyncio.ensure_future(upward)
    try:
        await downward
    finally:
        up.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await up


async def pump(reader, writer):
    while data := await reader.read(LONGEST):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()


async def say(writer, status):
    """An answer of the proxy's own, in a sentence that a learner can act on."""
    text = f"{status}. The seat may be starting: load this page again in a moment.\n".encode()
    writer.write(f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
                 "Retry-After: 3\r\nConnection: close\r\n\r\n".encode() + text)  # fmt: skip
    await writer.drain()


def listen(ip, port):
    """A listening socket on an address of this machine."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((ip, port))
    listener.listen(256)
    return listener
