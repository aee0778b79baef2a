"""Decides how an overlay becomes manifests: by the kustomize that is part of kubectl, of a version that knows
all that the overlays use.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from andon.deploy.errors import KubectlError, RenderError

# The JSON of one object of the API, of whatever kind.
Manifest: TypeAlias = dict[str, Any]

# The first with kustomize 5, which the overlays are written for.
OLDEST_KUBECTL = (1, 27)
TIMEOUT_S = 120.0


def find_kubectl() -> str:
    """The program, which is new enough. Raises KubectlError."""
    found = shutil.which("kubectl")
    if found is None:
        raise KubectlError("kubectl is not installed, and it renders the manifests", reason="KUBECTL_MISSING")
    done = _run([found, "version", "--client", "-o", "json"])
    try:
        version = json.loads(done.stdout)["clientVersion"]["gitVersion"]
    except (ValueError, KeyError, TypeError):
        raise KubectlError(
            f"{found} does not say its version: {done.stderr.strip() or done.stdout.strip()}",
            reason="KUBECTL_TOO_OLD",
        ) from None
    numbers = re.match(r"v?(\d+)\.(\d+)", str(version))
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_KUBECTL:
        oldest = ".".join(map(str, OLDEST_KUBECTL))
        raise KubectlError(
            f"{found} is {version}; the manifests need {oldest} or newer",
            reason="KUBECTL_TOO_OLD",
            version=version,
        )
    return found


def render_text(folder: Path, *, kubectl: str) -> str:
    """The manifests of a folder with a kustomization, as YAML. Raises RenderError."""
    if not folder.is_dir():
        raise RenderError(f"{folder} is no folder", folder=folder)
    done = _run([kubectl, "kustomize", str(folder)])
    if done.returncode != 0:
        raise RenderError(f"{folder}: {_last_words(done.stderr)}", folder=folder)
    return done.stdout


def render(folder: Path, *, kubectl: str) -> list[Manifest]:
    """The same as values."""
    return parse(render_text(folder, kubectl=kubectl))


def render_together(
    resources: Sequence[Path], components: Sequence[Path], *, namespace: str, kubectl: str
) -> list[Manifest]:
    """What an overlay of nothing but these would give."""
    with tempfile.TemporaryDirectory(prefix="andon-deploy-") as scratch:
        folder = Path(scratch).resolve()
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            "resources": [_way(folder, path) for path in resources],
            "components": [_way(folder, path) for path in components],
        }
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization), encoding="utf-8")
        return render(folder, kubectl=kubectl)


def parse(text: str) -> list[Manifest]:
    """All documents of a stream of YAML."""
    # Where libyaml was built in, the same in a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, Loader=loader) if document is not None]


def _way(start: Path, target: Path) -> str:
    # Kustomize takes no absolute paths.
    up = [".."] * (len(start.parts) - 1)
    return str(Path(*up, *target.resolve().parts[1:]))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise RenderError(f"{' '.join(command)} did not end within {TIMEOUT_S:.0f} s") from error


def _last_words(stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if line]
    return lines[-1] if lines else "kubectl said nothing"
