"""Prints who reaches what, before and after, as one table."""

import os
import sys

from probes import Matrix, Reach
from world import HOSTS, OUTWARD, SERVICES, Cell

WHO_WIDTH = 19


class Paint:
    """Colours for a terminal, and marks that its encoding has."""

    def __init__(self) -> None:
        self.colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        fancy = "utf" in (sys.stdout.encoding or "").lower()
        self.yes, self.no, self.arrow, self.line = ("●", "·", "→", "─") if fancy else ("O", ".", ">", "-")

    def __call__(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text

    def heading(self, text: str) -> str:
        """A step of the story."""
        return self("1;36", text)

    def faint(self, text: str) -> str:
        """What may be skipped."""
        return self("2", text)

    def good(self, text: str) -> str:
        """As it should be."""
        return self("1;32", text)

    def bad(self, text: str) -> str:
        """As it should not be."""
        return self("1;37;41", text)

    def mark(self, reach: Reach) -> str:
        """One side of a cell."""
        text = reach.short(self.yes, self.no)
        return {True: self("1;32", text), False: self("2;31", text), None: self("1;33", text)}[reach.open]

    def cell(self, before: Reach, after: Reach, wrong: bool) -> tuple[str, int]:
        """A cell and how wide it looks."""
        plain = f"{before.short(self.yes, self.no)} {self.arrow} {after.short(self.yes, self.no)}"
        if wrong:
            return self.bad(f"{plain} !"), len(plain) + 2
        return f"{self.mark(before)} {self.faint(self.arrow)} {self.mark(after)}", len(plain)


def render(paint: Paint, before: Matrix, after: Matrix, wrong: set[Cell]) -> str:
    """The table; cells in `wrong` are not as they should be and stand out."""
    rows = []
    for host in HOSTS:
        cells = [(host.name, service.name) for service in SERVICES]
        rows.append((host.title, [paint.cell(before[cell], after[cell], cell in wrong) for cell in cells]))
    widths = [
        max(len(service.name), len(f":{service.port}"), *(cells[column][1] for _, cells in rows))
        for column, service in enumerate(SERVICES)
    ]
    total = WHO_WIDTH + sum(width + 2 for width in widths)

    def row(who: str, cells: list[tuple[str, int]]) -> str:
        padded = (text + " " * (width - shown) for (text, shown), width in zip(cells, widths))
        return f"  {who:<{WHO_WIDTH}}{'  '.join(padded)}".rstrip()

    def words(texts: list[str]) -> list[tuple[str, int]]:
        return [(text, len(text)) for text in texts]

    lines = [
        row("who reaches the", words([service.name for service in SERVICES])),
        paint.faint(row("node's ...", words([f":{service.port}" for service in SERVICES]))),
        "  " + paint.faint(paint.line * (total - 2)),
        *(row(title, cells) for title, cells in rows),
        "  " + paint.faint(paint.line * (total - 2)),
    ]
    for number, (host, _, service) in enumerate(OUTWARD):
        cell = ("node", f"{host}:{service.name}")
        text, _ = paint.cell(before[cell], after[cell], cell in wrong)
        who = "" if number else "the node reaches"
        lines.append(f"  {who:<{WHO_WIDTH}}{f'{host} {service.name} :{service.port}':<25}{text}")
    lines += [
        paint.faint(f"  {paint.yes} connects   {paint.no} does not      {paint.arrow} from without nodewall to now"),
        paint.faint("  IPv4 and IPv6 alike, and by every address of the node, where nothing else is said"),
    ]
    return "\n".join(lines)


def name_of(cell: Cell) -> str:
    """A cell in words."""
    who, what = cell
    if who == "node":
        host, service = what.split(":")
        return f"node to {host}'s {service}"
    title = next(host.title for host in HOSTS if host.name == who)
    return f"{title} to {what}"
