"""Every image is one that is known, of a version that is named."""

from __future__ import annotations

import re
from collections.abc import Iterator

from andon.deploy.findings import Finding
from andon.deploy.rules import Scene

_IMAGE = re.compile(r"(?P<name>.+?)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?")


def image_findings(scene: Scene) -> Iterator[Finding]:
    """Images that are nobody's, or could be another one tomorrow."""
    known = scene.requirements.images
    for pods in scene.cluster.pods:
        for container in pods.containers:
            image = container.get("image", "")
            found = _IMAGE.fullmatch(image)
            if found is None:
                yield Finding(rule="image", where=pods.where, message=f"{image!r} names no image")
                continue
            name = found["name"]
            # A registry's own name may stand before: registry.example.com/team/andon/cpu.
            if known and not any(name == entry or name.endswith(f"/{entry}") for entry in known):
                message = f"image {name} is not among the required ones"
                yield Finding(rule="image", where=pods.where, message=message)
            if found["digest"] is None and found["tag"] in (None, "latest"):
                message = f"image {image} names no version"
                yield Finding(rule="image", where=pods.where, message=message)
