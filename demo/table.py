"""The demo's one table: who reaches what, before and after."""

import os
import sys

from scenario import CALLERS, SERVICES

COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


def paint(text, colour):
    """The text in a colour, when a terminal looks on and NO_COLOR is not set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def symbols():
    """Open, shut, arrow: what the terminal's encoding can show."""
    try:
        "●○→".encode(sys.stdout.encoding or "ascii")
        return "●", "○", "→"
    except (UnicodeEncodeError, LookupError):
        return "o", "-", ">"


def cell(before, after, width):
    """`● → ○` where something changed, one sign where not. `None` is a difference between IPv4 and IPv6."""
    open_, shut, arrow = symbols()
    sign = {True: open_, False: shut, None: "?"}
    colour = {True: "green", False: "red", None: "yellow"}
    if before == after:
        return paint(sign[after], "dim" if after is False else colour[after]) + " " * (width - 1)
    return f"{sign[before]} {arrow} {paint(sign[after], colour[after])}" + " " * (width - 5)


def show(title, before, after):
    """Prints the table of two rounds of probes, each a list of rows of {service: open}."""
    open_, shut, arrow = symbols()
    width = max(len(service.name) for service in SERVICES) + 2
    first = max(len(caller.name) for caller in CALLERS) + 2
    second = max(len(caller.way) for caller in CALLERS) + 2
    print(f"\n{paint(title, 'bold')}   {open_} reachable   {shut} not   before {arrow} after   (IPv4 and IPv6)\n")
    head = "WHO".ljust(first) + "BY".ljust(second) + "".join(service.name.ljust(width) for service in SERVICES)
    print("  " + paint(head.rstrip(), "bold"))
    for index, caller in enumerate(CALLERS):
        cells = "".join(cell(before[index][s.name], after[index][s.name], width) for s in SERVICES)
        print("  " + caller.name.ljust(first) + caller.way.ljust(second) + cells.rstrip())
    print(flush=True)
