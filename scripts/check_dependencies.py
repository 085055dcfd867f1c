"""Checks which crates of the workspace use which, so that decisions stay pure and the planes stay apart."""

import json
import subprocess
import sys

# crate -> crates of this workspace it may use; None: all
ALLOWED: dict[str, set[str] | None] = {
    "backstop-core": set(),
    "backstop-openai": set(),
    "backstop-config": {"backstop-core"},
    "backstop-store": set(),
    "backstop-controller": {"backstop-core", "backstop-config", "backstop-store"},
    "backstop-gateway": {"backstop-core", "backstop-openai"},
    "backstop-engine-sim": {"backstop-openai"},
    "backstop-lab": {"backstop-core"},
    "backstop-properties": {"backstop-config", "backstop-gateway", "backstop-openai"},
    "backstop": None,
    "backstop-bench": set(),
    "backstop-soak": {"backstop-engine-sim"},
}
# Tests may use more, such as the simulator in place of a model server. The planes stay apart there too.
APART_IN_TESTS = {
    "backstop-gateway": {"backstop-config", "backstop-controller"},
    "backstop-controller": {"backstop-gateway"},
}


def metadata() -> dict:
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def problems(packages: list[dict]) -> list[str]:
    names = {package["name"] for package in packages}
    found = [f"`{name}` is listed here, but is not in the workspace" for name in sorted(set(ALLOWED) - names)]
    for package in sorted(packages, key=lambda package: package["name"]):
        name = package["name"]
        if name not in ALLOWED:
            found.append(f"`{name}` has no rule\nhint: add it to scripts/check_dependencies.py")
            continue
        allowed = ALLOWED[name]
        for dependency in package["dependencies"]:
            used, kind = dependency["name"], dependency["kind"] or "normal"
            if used not in names or allowed is None or used in allowed:
                continue
            if kind == "dev" and used not in APART_IN_TESTS.get(name, set()):
                continue
            can = ", ".join(f"`{other}`" for other in sorted(allowed)) or "no crate of this workspace"
            found.append(f"`{name}` must not use `{used}` ({kind} dependency); it may use {can}")
    return found


def main() -> int:
    packages = metadata()["packages"]
    found = problems(packages)
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if not found:
        print(f"dependencies of {len(packages)} crates point the right way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
