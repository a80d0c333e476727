#!/usr/bin/env python3
"""licences.py TARGET: prints the licences of what is linked into the program, and each text that came with it once.

Fails when a crate names no licence, or when one that comes without a text has a licence whose text no other crate brings.
"""

import pathlib
import re
import sys

import crates

TEXT = re.compile(r"(licen[cs]e|copying|notice|unlicense|copyright)", re.IGNORECASE)
# What tells the text of a licence.
OPENING = {
    "Apache-2.0": "apache license version 2.0",
    "BSD-3-Clause": "neither the name of",
    "ISC": "permission to use, copy, modify, and/or distribute",
    "LGPL-2.1-or-later": "gnu lesser general public license",
    "MIT": "permission is hereby granted, free of charge",
    "Zlib": "altered source versions must be plainly marked",
}


def texts(crate):
    """The texts in the crate's source, as they are but for white space at the ends of lines."""
    source = pathlib.Path(crate["manifest_path"]).parent
    places = [source, *(source / name for name in ("LICENSES", "LICENSE", "licenses", "license", "third_party")), source / "src"]
    for place in places:
        for file in sorted(place.glob("*")):
            if file.is_file() and TEXT.match(file.name) and file.suffix not in (".rs", ".toml", ".spdx"):
                yield "\n".join(line.rstrip() for line in file.read_text(errors="replace").strip().splitlines())


def alike(text):
    """Texts that differ only in lines and white space are one. The appendix of the Apache License says how to use it."""
    text = text.split("APPENDIX: How to apply the Apache License")[0]
    return " ".join(re.sub(r"[^\w.,;:/()@-]+", " ", text).split()).lower()


def main(target):
    linked = [crate for crate, _, linked in crates.crates(target)[0] if linked]
    known, users, lines, without = {}, {}, [], []
    for crate in linked:
        name = f"{crate['name']} {crate['version']}"
        if not crate["license"]:
            sys.exit(f"licences.py: {name} names no licence")
        lines.append(f"  {name}: {crate['license']}")
        found = list(texts(crate))
        if not found:
            without.append(crate)
        for text in found:
            known.setdefault(alike(text), text)
            users.setdefault(alike(text), []).append(name)
    for crate in without:
        alternatives = set(re.split(r"\s+OR\s+|/", crate["license"].strip("()")))
        if not any(OPENING.get(one.split()[0], "\0") in text for one in alternatives for text in known):
            sys.exit(f"licences.py: {crate['name']} has no text of its licence, {crate['license']}, and no other crate has it")
    bundled = [f"  SQLite {version}: public domain" for crate in linked if (version := crates.sqlite(crate))]

    print("What is linked into nodewall beside its own source, which is under the Apache License 2.0.\n")
    print(f"Crates for {target}, with their licences as SPDX expressions:\n")
    print("\n".join(lines))
    print("\nIn them, or from the compiler:\n")
    print("\n".join([*bundled, f"  the standard library of Rust {crates.compiler()}: MIT OR Apache-2.0"]))
    print("\nThese come without a text; it is that of their licence below, with their authors:\n")
    for crate in without:
        print(f"  {crate['name']} {crate['version']}: {', '.join(crate['authors']) or 'its contributors, ' + str(crate['repository'])}")
    for key in sorted(known, key=lambda key: users[key]):
        print(f"\n{'=' * 79}\n{', '.join(sorted(set(users[key])))}\n{'=' * 79}\n\n{known[key]}")


main(*sys.argv[1:])
