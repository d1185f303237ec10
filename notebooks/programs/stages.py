"""The shim as it grows: its text after each stage, cut from the one file that is the whole.

    python3 stages.py shim 2 > shim-2

A section begins with a comment such as `# ======== Stage 2: ...` and is dropped before its stage.
`# [2]` at the end of a line marks one line that came with that stage, with all that is indented
under it. What is left is a program.
"""

import difflib
import re
import sys

LAST = 5
HEADING = re.compile(r"# =+ (?:Stage (\d)|All together)")
MARK = re.compile(r"  # \[(\d)\]")


def cut(program, stage):
    """The text of the program as it is after this stage."""
    kept, section, dropped = [], 1, None
    for line in program.splitlines():
        indent = _indent(line)
        if heading := HEADING.match(line):
            section = int(heading[1] or 1)  # "All together" is there from the first stage on
        if dropped is not None and (not line.strip() or indent > dropped):
            continue  # it stands under a line that was dropped
        dropped = None
        mark = MARK.search(line)
        if mark and int(mark[1]) > stage:
            dropped = indent
        elif section <= stage:
            if kept and kept[-1].endswith(":") and indent <= _indent(kept[-1]):
                kept.append(" " * (_indent(kept[-1]) + 4) + "pass")  # all of it comes later
            kept.append(line)
    return "\n".join(kept) + "\n"


def added(program, stage):
    """The lines that came with this stage, in order; `...` where others stand between them."""
    old, new = cut(program, stage - 1).splitlines(), cut(program, stage).splitlines()
    found, end = [], 0
    for kind, _, _, first, last in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        lines = [line for line in new[first:last] if line.strip()]
        if kind in ("insert", "replace") and lines:
            found += ["..."] * (first > end > 0) + lines
            end = last
    return "\n".join(found)


def source(program, *names):
    """The functions with these names, as they stand in the program's text."""
    found = []
    for name in names:
        one = re.search(rf"^def {re.escape(name)}\(.*\n(?:(?:[ ].*)?\n)*", program, re.M)
        if one is None:
            raise LookupError(f"there is no function {name}")
        found.append(one[0].rstrip("\n"))
    return "\n\n".join(found)


def _indent(line):
    return len(line) - len(line.lstrip())


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(cut(file.read(), int(sys.argv[2])), end="")
