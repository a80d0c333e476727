"""Our manifests, as `kubectl apply -k` would take them: the documents that a kustomization lists."""

import pathlib

import yaml

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "packaging/kubernetes"


def documents(name=""):
    """Every document of a kustomization, in its order."""
    folder = FOLDER / name
    for entry in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = folder / entry
        if path.is_dir():
            yield from documents(path)
        else:
            yield from parsed(path.read_text())


def parsed(text):
    """The documents of a text."""
    return [document for document in yaml.safe_load_all(text) if document]


def for_node(node):
    """What older/node.yaml.in is for this node."""
    return parsed((FOLDER / "older/node.yaml.in").read_text().replace("NODE", node))
