"""Checks that the packages of the tests and of the benchmark are pinned, and that no list says where they come from."""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHON_LISTS = [
    "tests/requirements.txt",
    "tests/engines/requirements.txt",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("bench/peers/*.txt")),
]
NODE_LISTS = ["tests/package.json", "tests/package-lock.json"]


def problems() -> list[str]:
    found = []
    for name in PYTHON_LISTS:
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if line and not line.startswith("#") and not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+-]+", line):
                found.append(f"{name}:{number}: `{line}` is not `NAME==VERSION`")
    for name in NODE_LISTS:
        text = (ROOT / name).read_text()
        for number, line in enumerate(text.splitlines(), 1):
            if '"resolved"' in line or re.search(r"https?://", line):
                found.append(f"{name}:{number}: an address\nhint: npm install --omit-lockfile-registry-resolved")
    for package, version in json.loads((ROOT / NODE_LISTS[0]).read_text())["devDependencies"].items():
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            found.append(f"{NODE_LISTS[0]}: `{package}` is not pinned, but `{version}`")
    return found


if __name__ == "__main__":
    for problem in problems():
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if problems() else 0)
