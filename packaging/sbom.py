#!/usr/bin/env python3
"""sbom.py TARGET VERSION: prints the bill of materials of the program as CycloneDX 1.5, the same bytes each time.

The time in it is SOURCE_DATE_EPOCH. Crates of scope "excluded" took part in the build and are not in the program.
"""

import datetime
import json
import os
import sys
import uuid

import crates


def purl(key):
    return f"pkg:cargo/{key[0]}@{key[1]}"


def component(crate, checksum, linked):
    key = (crate["name"], crate["version"])
    made = {
        "type": "library",
        "bom-ref": purl(key),
        "name": key[0],
        "version": key[1],
        "scope": "required" if linked else "excluded",
        "hashes": [{"alg": "SHA-256", "content": checksum}],
        # Older crates separate alternatives by a slash.
        "licenses": [{"expression": crate["license"].replace("/", " OR ").replace("  ", " ")}],
        "purl": purl(key),
    }
    if crate["repository"]:
        made["externalReferences"] = [{"type": "vcs", "url": crate["repository"]}]
    return made


def other(name, version, licence):
    """What is linked in and is no crate."""
    reference = f"pkg:generic/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "scope": "required",
        "licenses": [{"expression": licence}],
        "purl": reference,
    }


def main(target, version):
    listed, edges = crates.crates(target)
    program = crates.program()
    components = [component(*entry) for entry in listed]
    depends = {purl(key): [purl(to) for to in edges[key]] for key in sorted(edges)}
    for crate, _, _ in listed:
        if bundled := crates.sqlite(crate):
            components.append(other("sqlite", bundled, "blessing"))
            depends[purl((crate["name"], crate["version"]))].append(components[-1]["bom-ref"])
            depends[components[-1]["bom-ref"]] = []
    components.append(other("rust-std", crates.compiler(), "MIT OR Apache-2.0"))
    depends[purl(program)].append(components[-1]["bom-ref"])
    depends[components[-1]["bom-ref"]] = []

    time = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": purl(program),
                "name": program[0],
                "version": version,
                "licenses": [{"expression": "Apache-2.0"}],
                "purl": f"pkg:cargo/{program[0]}@{version}",
            },
            "properties": [{"name": "cargo:target", "value": target}],
        },
        "components": components,
        "dependencies": [{"ref": reference, "dependsOn": sorted(to)} for reference, to in depends.items()],
    }
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document))}"
    json.dump(document, sys.stdout, separators=(",", ":"))
    print()


main(*sys.argv[1:])
