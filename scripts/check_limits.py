"""Checks that docs/limits.md has every limit of the code, and the keys of the configuration, with their values."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOC = "docs/limits.md"
# Crates that meet strangers. The others have no limits of their own, or serve only tests.
CRATES = ["cli", "config", "controller", "core", "gateway", "openai", "store"]
# A constant with such a name is a limit.
LIMIT = re.compile(r"MAX_|MOST|LONGEST|DEEPEST|KEPT|BACKLOG|IDLE|WHOLE|LINGER|STALL|_GRACE|LAST_WORDS|^FRESH|TIMEOUT")
# Not met by strangers, or no bound at all.
OTHER = {
    "cli/client::TIMEOUT": "of our own commands",
    "cli/handover/wire::MAX_MESSAGE": "between our own processes",
    "cli/handover/wire::MAX_SOCKETS": "between our own processes",
    "cli/remote/client::TIMEOUT": "of our own commands",
    "cli/remote/client::CONNECT_TIMEOUT": "of our own commands",
    "cli/remote/client::MOST_BYTES": "of our own commands",
    "config/release/guardrail::MEAN_MAX_RATIO": "part of a decision",
    "controller/control::LONGEST_TEXT": "a matter of form",
    "controller/extract::MOST_IGNORED": "follows from another",
    "core/admission/gradient::MOST": "part of a decision",
    "core/outlier::MAX_MULTIPLE": "part of a decision",
    "core/rollout/engines::IDLE_AFTER": "part of a decision",
    "core/standby::MAX_FAILED": "part of a decision",
    "core/standby::MOST_PATIENCE": "part of a decision",
    "gateway/upstream/exchange::STALE_WITHIN": "part of a decision",
    "gateway/upstream/fuzzing::MAX_HEAD": "the one of `wire`",
}
UNITS = {"KiB": 2**10, "MiB": 2**20, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "levels": 1, "bytes": 1}


def evaluate(expression: str, known: dict[str, float]) -> float | None:
    """Value of a constant: a number, a number of bytes, or milliseconds."""
    expression = re.sub(r"Duration::from_secs\((.*?)\)", r"(\1) * 1000", expression)
    expression = re.sub(r"Duration::from_millis\((.*?)\)", r"(\1)", expression)
    expression = re.sub(r"[A-Z][A-Z_]+", lambda name: str(known.get(name[0], name[0])), expression)
    expression = re.sub(r"(?<=\d)_(?=\d)|(?<=\d)_?(u8|u16|u32|u64|usize)\b", "", expression)
    if not re.fullmatch(r"[\d\s.*+()<-]+", expression):
        return None
    return eval(expression)  # noqa: S307 - digits and operators only


def constants() -> dict[str, float | None]:
    """Every constant at the top of a file: `crate/path::NAME` → value."""
    found: dict[str, float | None] = {}
    for crate in CRATES:
        src = ROOT / "crates" / crate / "src"
        for file in sorted(src.rglob("*.rs")):
            place = f"{crate}/{file.relative_to(src).with_suffix('')}"
            known: dict[str, float] = {}
            pattern = r"^(?:pub(?:\(\w+\))? )?const ([A-Z_]+): \w+ =\s*([^;]+);"
            for name, expression in re.findall(pattern, file.read_text(), re.MULTILINE):
                value = evaluate(expression, known)
                if value is not None:
                    known[name] = value
                found[f"{place}::{name}"] = value
    return found


def documented(text: str) -> float | None:
    """`64 KiB`, `5 min`, `50,000` or `120s` as a number."""
    match = re.match(r"([\d,]+) ?(\w+)?", text)
    if not match:
        return None
    return int(match[1].replace(",", "")) * UNITS.get(match[2] or "", 1)


def defaults() -> dict[str, str]:
    """Keys of the configuration with their defaults, from the generated reference."""
    rows = re.findall(r"^\| `([^`]+)` \| .*? \| `([^`]+)` \| ", (ROOT / "docs/config.md").read_text(), re.MULTILINE)
    return dict(rows)


def problems() -> list[str]:
    found = []
    values, keys = constants(), defaults()
    listed = set()
    for number, line in enumerate((ROOT / DOC).read_text().splitlines(), 1):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 4 or cells[0] in ("What", "---"):
            continue
        _, bound, _, source = cells
        names = re.findall(r"`([^`]+)`", source)
        for name in names:
            listed.add(name)
            value = values.get(name) if "::" in name else documented(keys.get(name, ""))
            if "::" not in name and name not in keys:
                if not name.startswith("serve "):
                    found.append(f"{DOC}:{number}: there is no key `{name}` with a default in docs/config.md")
            elif "::" in name and name not in values:
                found.append(f"{DOC}:{number}: there is no constant `{name}`")
            elif value != documented(bound):
                found.append(f"{DOC}:{number}: `{name}` is not {bound}")
    for name in values:
        if LIMIT.search(name.split("::")[1]) and name not in listed and name not in OTHER:
            hint = "add a row, or say in scripts/check_limits.py why it is none"
            found.append(f"{DOC}: the limit `{name}` is missing\nhint: {hint}")
    found += [f"`{name}` is in scripts/check_limits.py, but not in the code" for name in OTHER if name not in values]
    return found


if __name__ == "__main__":
    for problem in problems():
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(1 if problems() else 0)
