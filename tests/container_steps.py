"""Run the Dockerfile's steps without a container engine: ``python tests/container_steps.py FOLDER``.

FOLDER, empty or new, takes the place of the image's root. What is copied and what is run is read from the Dockerfile,
its paths moved into FOLDER; only accounts are not made. At the end the image's own command is started, its health check
is asked, and the embedded sample goes through a job. Variables of the same name replace an ARG: where PyPI has a CPU
build of torch, TORCH_INDEX may name that.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOVED = ("/app", "/opt/venv", "/data", "/tmp")
START_SECONDS, JOB_SECONDS = 120.0, 300.0


@dataclass
class Stage:
    """A stage of the image: its base, and its instructions in their order."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [value for word, value in self.instructions if word == keyword]


def read_stages(text: str) -> list[Stage]:
    """Read a Dockerfile: comments out, lines that go on joined."""
    stages: list[Stage] = []
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in filter(str.strip, re.sub(r"\\\n\s*", " ", lines).splitlines()):
        keyword, _, value = line.strip().partition(" ")
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append(Stage(base, name))
        else:
            stages[-1].instructions.append((keyword, value.strip()))
    return stages


def variables(value: str) -> dict[str, str]:
    """Read what ENV or ARG sets."""
    return dict(part.split("=", 1) for part in value.split())


def moved(text: str, folder: Path) -> str:
    """Move the image's own paths into a folder."""
    return re.sub(rf"(?<![\w./])({'|'.join(MOVED)})(?![\w-])", lambda found: f"{folder}{found[1]}", text)


def copy(value: str, folder: Path, work: Path, ignored: list[str]) -> None:
    """Do what COPY does from the repository."""
    *sources, target = value.split()
    for source in sources:
        path, place = ROOT / source, work / target
        if path.is_dir():
            shutil.copytree(path, place, ignore=shutil.ignore_patterns(*ignored), dirs_exist_ok=True)
        else:
            shutil.copy(path, place / path.name if target.endswith("/") else place)


def build(folder: Path) -> tuple[Stage, dict[str, str]]:
    """Run the steps; return the last stage and the environment of its processes."""
    stages = read_stages((ROOT / "Dockerfile").read_text())
    ignored = ["__pycache__", "exported"]
    for name in MOVED:
        (folder / name[1:]).mkdir(parents=True, exist_ok=True)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder / "tmp")}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for stage in stages:
        work = folder / "app"
        environment["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        for keyword, value in stage.instructions:
            if keyword in ("ENV", "ARG"):
                for name, setting in variables(value).items():
                    given = os.environ.get(name, setting) if keyword == "ARG" else setting
                    environment[name] = moved(given, folder).replace("$PATH", environment["PATH"])
            elif keyword == "WORKDIR":
                work = Path(moved(value, folder))
            elif keyword == "COPY" and not value.startswith("--from"):
                copy(value, folder, work, ignored)
            elif keyword == "RUN" and "useradd" not in value:
                sys.stdout.write(f"RUN {value}\n")
                sys.stdout.flush()
                subprocess.run(["/bin/sh", "-ec", moved(value, folder)], cwd=work, env=environment, check=True)
    return stages[-1], environment


def ask(url: str, token: str, body: bytes | None = None) -> dict[str, object]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def start(folder: Path, stage: Stage, environment: dict[str, str]) -> None:
    """Start the image's command, ask its health check, and have it do the sample."""
    words = [*json.loads(stage.all("ENTRYPOINT")[0]), *json.loads(stage.all("CMD")[0])]
    check = json.loads(stage.all("HEALTHCHECK")[0].partition("CMD ")[2])
    token = secrets.token_urlsafe()
    server = subprocess.Popen(
        [moved(word, folder) for word in words], cwd=folder / "data", env={**environment, "AR2UNET_TOKEN": token}
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(check, env=environment, capture_output=True).returncode:
            if time.monotonic() > deadline or server.poll() is not None:
                raise SystemExit("the health check was never passed")
            time.sleep(0.5)
        jobs = f"http://127.0.0.1:{stage.all('EXPOSE')[0]}/api/jobs"
        job = ask(jobs, token, b'{"sample": true}')
        deadline = time.monotonic() + JOB_SECONDS
        while job["state"] not in ("finished", "failed") and time.monotonic() < deadline:
            job = ask(f"{jobs}/{job['id']}?revision={job['revision']}", token)
        if job["state"] != "finished":
            raise SystemExit(f"the sample was not finished: {job}")
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Build below the folder that is named, and start what was built."""
    folder = Path(sys.argv[1]).resolve()
    stage, environment = build(folder)
    start(folder, stage, environment)
    sys.stdout.write("the image's steps run, its command serves, and the sample is segmented\n")


if __name__ == "__main__":
    main()
