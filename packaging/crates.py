"""Which crates are in the program for a target, as cargo builds it: the ground of the SBOM and of the licence report."""

import json
import pathlib
import re
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def cargo(*arguments):
    """What cargo prints."""
    return subprocess.run(
        ["cargo", *arguments, "--locked", "--quiet"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def names_in_tree(target, edges):
    """(name, version) of all crates that `cargo tree` reaches by these edges, the program itself left out."""
    lines = cargo("tree", "--target", target, "--edges", edges, "--prefix", "none", "--no-dedupe").splitlines()
    found = {tuple(re.match(r"(\S+) v(\S+)", line).groups()) for line in lines if line}
    return found - {program()}


def program():
    """(name, version) of the program."""
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    return package["name"], package["version"]


def crates(target):
    """The crates in order of name and version: (what cargo says of it, its SHA-256, whether it is linked in), and what each depends on.

    What is not linked in ran on the machine that built the program: build scripts, procedural macros and what they use.
    """
    linked = names_in_tree(target, "normal,no-proc-macro")
    used = linked | names_in_tree(target, "normal,build")
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", target))
    packages = {(package["name"], package["version"]): package for package in metadata["packages"]}
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    sums = {(package["name"], package["version"]): package.get("checksum") for package in locked}
    by_id = {package["id"]: key for key, package in packages.items()}
    known = used | {program()}
    edges = {
        by_id[node["id"]]: sorted(
            {
                by_id[dependency["pkg"]]
                for dependency in node["deps"]
                if by_id[dependency["pkg"]] in known and any(kind["kind"] != "dev" for kind in dependency["dep_kinds"])
            }
        )
        for node in metadata["resolve"]["nodes"]
        if by_id[node["id"]] in known
    }
    return [(packages[key], sums[key], key in linked) for key in sorted(used)], edges


def sqlite(crate):
    """The version of the SQLite that libsqlite3-sys compiles, or None for another crate."""
    if crate["name"] != "libsqlite3-sys":
        return None
    header = pathlib.Path(crate["manifest_path"]).parent / "sqlite3" / "sqlite3.h"
    return re.search(r'#define SQLITE_VERSION\s+"([\d.]+)"', header.read_text()).group(1)


def compiler():
    """The version of the compiler, and so of the standard library that is linked in."""
    return subprocess.run(["rustc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]
