"""Builds the images as a user would, without a registry: the base by mmdebstrap, the rest by the Dockerfile.

pip in the build sees what pip on this machine sees, so that a CPU build of torch at hand is taken instead of
the CUDA build. Layers of an earlier build are used again. Builds yield to everything else on the machine.
"""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
BASE = "localhost/andon-base:bookworm-slim"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# What Debian's own slim images leave out.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
KEPT = "/usr/share/doc/*/copyright"
PROGRAMS = {
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "kubectl": "kubernetes-client",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
}


def need_programs() -> None:
    """Skips where a program is missing: whoever asks for these tests reads which."""
    missing = sorted({package for name, package in PROGRAMS.items() if shutil.which(name) is None})
    if missing:
        pytest.skip(f"missing: apt-get install {' '.join(missing)}")


def build(target: str, image: str, folder: Path) -> None:
    """Builds one target of the Dockerfile and names it; ``folder`` takes what the build needs beside it."""
    _make_base(folder)
    command = ["buildah", "build", "--pull-never", "--layers", "--network=host", "--file", str(DOCKERFILE)]
    command += [f"--build-arg=BASE={BASE}", f"--build-arg=VERSION={image.rpartition(':')[2]}"]
    command += [f"--volume={source}:{place}:ro" for source, place in _pip_mounts(folder)]
    run_patiently([*command, f"--target={target}", f"--tag={image}", str(ROOT)])


def run_patiently(command: Sequence[str]) -> None:
    """Runs a long command at the lowest priority and shows its last words when it fails."""
    done = subprocess.run(
        ["nice", "-n", "19", "ionice", "-c", "3", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def _make_base(folder: Path) -> None:
    if subprocess.run(["podman", "image", "exists", BASE], check=False).returncode == 0:
        return
    archive = folder / "base.tar"
    options = [f"--dpkgopt=path-exclude={place}" for place in LEFT_OUT]
    run_patiently(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--include=ca-certificates",
            *options,
            f"--dpkgopt=path-include={KEPT}",
            "bookworm",
            str(archive),
        ]
    )
    run_patiently(["podman", "import", "--quiet", str(archive), BASE])
    archive.unlink()


def _pip_mounts(folder: Path) -> list[tuple[Path, str]]:
    """This machine's pip configuration as one file, and the local folders that it names."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.split("=", 1) for line in listed.splitlines() if line.startswith("global."))
    parser = configparser.RawConfigParser()
    parser["global"] = {name.removeprefix("global."): value.strip("'") for name, value in settings.items()}
    merged = folder / "pip.conf"
    with merged.open("w", encoding="utf-8") as stream:
        parser.write(stream)
    words = [word for value in parser["global"].values() for word in value.split()]
    paths = {Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///"))}
    # An index of a folder may point at files beside it.
    folders = {path.parent if path.name == "simple" else path for path in paths if path.exists()}
    return [
        (merged, "/etc/pip.conf"),
        (CERTIFICATES, str(CERTIFICATES)),
        *((path, str(path)) for path in sorted(folders - {CERTIFICATES})),
    ]
