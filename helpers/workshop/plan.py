"""What a workshop is made of, before anything is made: seats, their users and addresses, and the cards. Pure.

User IDs come from a range that systemd's table of user IDs calls unused. The users stand in an /etc/passwd that
only the room sees.
"""

import html
import secrets
from dataclasses import dataclass

FIRST_UID = 1_900_000_000
RANGE = 65536  # subordinate user IDs of a seat
HUB = "10.77.0.1"  # in the room's own network: it can't collide with the machine's
HUB_PORT = 8081
SEAT_PORT = 8888
MOST = 200  # seats
INSTRUCTOR = "instructor"
LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"  # none that look alike on paper


@dataclass(frozen=True)
class Seat:
    """One place in the workshop; number 0 is the instructor's own. `name` is its Unix user, in the room."""

    number: int
    name: str
    uid: int

    @property
    def network(self):
        return f"10.77.{self.number + 1}"

    @property
    def address(self):
        return f"{self.network}.2"

    @property
    def home(self):
        return f"/home/{self.name}"

    @property
    def first_subordinate(self):
        return FIRST_UID + (self.number + 1) * 2 * RANGE


def seats(count):
    """The instructor's seat and `count` others."""
    if not 1 <= count <= MOST:
        raise ValueError(f"a workshop has 1 to {MOST} seats")
    names = [INSTRUCTOR, *(f"seat-{number:02}" for number in range(1, count + 1))]
    return [Seat(number, name, FIRST_UID + number) for number, name in enumerate(names)]


def passwd(members):
    """The lines for /etc/passwd. The `*` is a password that no typing can match."""
    return "".join(f"{s.name}:*:{s.uid}:{s.uid}:seat of a workshop:{s.home}:/bin/bash\n" for s in members)


def group(members):
    """The lines for /etc/group."""
    return "".join(f"{seat.name}:x:{seat.uid}:\n" for seat in members)


def subordinates(members):
    """The lines for /etc/subuid and /etc/subgid."""
    return "".join(f"{seat.name}:{seat.first_subordinate}:{RANGE}\n" for seat in members)


def share(total, count, keep=0.15, least=512, most=2048):
    """MB of memory for a seat, when `total` MB are shared by `count` and the fraction `keep` stays for the rest."""
    return max(least, min(most, int(total * (1 - keep) / count)))


def code(seat):
    """A new code for a seat's card: its number, and 10 letters that nobody guesses (49 bits)."""
    letters = "".join(secrets.choice(LETTERS) for _ in range(10))
    return f"{seat.number:02}-{letters[:5]}-{letters[5:]}"


def normal(typed):
    """A code as people type it, in the form in which it is kept."""
    return "-".join(typed.lower().replace("-", " ").split())


def cards(members, codes, address):
    """The page to print: one card a seat, as HTML. `codes` maps names to codes."""
    items = "".join(
        f"<li><h2>{'Instructor' if seat.number == 0 else f'Seat {seat.number}'}</h2>"
        f"<p>Open <b>{html.escape(address)}</b></p><p>Your code: <b>{codes[seat.name]}</b></p></li>"
        for seat in members
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Cards of the workshop</title>
<style>
body {{ font: 16px/1.4 sans-serif; margin: 1cm; color: #000; background: #fff }}
ul {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(8cm, 1fr)); gap: .5cm; padding: 0 }}
li {{ list-style: none; border: 1px dashed #555; padding: .3cm .5cm; break-inside: avoid }}
h2 {{ font-size: 1.1em; margin: 0 }} p {{ margin: .3em 0 }} b {{ font-family: monospace; font-size: 1.15em }}
</style>
<h1>Uncontained</h1>
<p>Cut along the lines. A card is a key: whoever has it has the seat. The first one is yours.</p>
<ul>{items}</ul>
</html>
"""
