"""Claims that are tested where they are made: `check`, `expect_failure`, and the exercises."""

import contextlib
import json
import os
import socket
from pathlib import Path

from helpers import progress
from helpers.lab import StepFailed


class CheckFailed(AssertionError):
    """A claim on the page is not true on this machine."""


def check(claim, holds):
    """Print the claim with a tick when it holds; raise CheckFailed when it doesn't.

    `holds` must be True or False: a list or a string would be "true" by accident.
    """
    if holds is not True and holds is not False:
        raise TypeError(
            f"check({claim!r}, ...) takes True or False, not {type(holds).__name__}: compare it with something"
        )
    tell("check", claim, holds)
    if not holds:
        raise CheckFailed(f"✗ {claim}")
    print(f"✓ {claim}")
    progress.note("check", claim)


@contextlib.contextmanager
def expect_failure(*words):
    """The block must fail, and its error must contain each of the `words`; it is shown, and the lesson goes on.

        with expect_failure("cannot allocate tty"):
            lab.run([...])

    Raises CheckFailed when nothing fails, or for another reason.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, StepFailed) as error:
        said = str(error.output) if isinstance(error, StepFailed) else f"{type(error).__name__}: {error}"
        missing = [word for word in words if word not in said]
        if missing:
            raise CheckFailed(f"it failed, but not as foretold: no {missing} in: {said}") from error
        print(said)
        if isinstance(error, StepFailed):
            print(f"(status {error.output.code}: this failure was meant)")
        else:
            print("(this failure was meant)")
    else:
        raise CheckFailed("this was meant to fail, and did not")


def exercise(outcome, reached, hint=""):
    """Test the reader's own work: `outcome` in words, `reached` a function that looks at the live system.

    Prints a tick when it is reached; else what is missing, without an error, so that a lesson can be run
    from top to bottom with its exercises still open.
    """
    try:
        done, trouble = reached() is True, ""
    except StepFailed as error:
        done, trouble = False, f"\n  {str(error.output).splitlines()[-1]}"
    except OSError as error:
        done, trouble = False, f"\n  {error.strerror}"
    except (ValueError, LookupError, AttributeError) as error:
        done, trouble = False, f"\n  {error}"
    tell("exercise", outcome, done)
    if done:
        print(f"✓ {outcome}")
        progress.note("exercise", outcome)
    else:
        print(f"○ not yet: {outcome}{trouble}" + (f"\n  hint: {hint}" if hint else ""))


def tell(kind, words, done):
    """In a workshop (`./lab workshop`), tell the instructor's page: lesson, claim, outcome, and nothing else."""
    door = os.environ.get("UNCONTAINED_PROGRESS")
    if not door:
        return
    lesson = Path(os.environ.get("JPY_SESSION_NAME", "")).stem  # the server sets it to the notebook's path
    said = json.dumps({"lesson": lesson, "kind": kind, "words": words, "done": done})
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
        speaking.setblocking(False)  # when nobody listens, the lesson goes on
        speaking.sendto(said.encode(), door)
