"""What a compiled program sends between devices, read from the text of its HLO."""

import dataclasses
import math
import re
from collections.abc import Sequence

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
    "send",
)
ONE_WAY = ("collective-permute", "send")

_BYTES = {"pred": 1, "c64": 8, "c128": 16, "token": 0}
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_FUSION = re.compile(r"%(?P<name>[\w.\-]+) = .* fusion\(.*calls=%(?P<callee>[\w.\-]+)")
_WHILE = re.compile(r" while\(.*condition=%(?P<condition>[\w.\-]+), body=%(?P<body>[\w.\-]+)")
_CALLS = re.compile(r"(?:to_apply|calls|called_computations|branch_computations)=\{?%([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective operation of a program."""

    kind: str
    """One of `KINDS`."""
    count: int
    """Times that it runs in one call of the program."""
    bytes: int
    """Bytes of the whole array, or arrays, each time, as one device holds them: gathered, or before
    they are scattered."""
    devices: int
    """Devices that exchange it among each other."""

    @property
    def between_slices(self) -> bool:
        """Whether data goes from one slice to another; the compiler spells that out as `send`."""
        return self.kind == "send"

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one call, by the ring algorithm: of an array over n
        devices (n - 1) / n, an all-reduce twice that, and a permutation all."""
        share = 1.0 if self.kind in ONE_WAY else (self.devices - 1) / self.devices
        return self.count * self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str) -> list[Collective]:
    """List the collective operations of a compiled program.

    The bodies of loops count as often as they run. Both the HLO of the CPU's compiler and that of
    the TPU's are read, where one operation may stand in several fused computations: in the one that
    starts it, those that it overlaps with, and the one that awaits it.

    Args:
      text: `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: for a loop whose trip count, or a group of devices whose form, is not known.
    """
    computations, entry = _parse(text)
    found: list[Collective] = []

    def visit(name: str, times: int, awaited: set[str]) -> None:
        for line in computations[name]:
            if match := _WHILE.search(line):
                trips = _trip_count(line, computations[match["condition"]])
                visit(match["body"], times * trips, set())
            elif match := _COLLECTIVE.search(line):
                if (operation := _collective(line, match, times, name, awaited)) is not None:
                    found.append(operation)
            elif match := _FUSION.search(line):
                visit(match["callee"], times, awaited)
            elif " call(" in line or " conditional(" in line or "async-start(" in line:
                for callee in _CALLS.findall(line):
                    visit(callee, times, set())

    visit(entry, 1, set())
    return found


def _parse(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of each computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match["name"]
            computations[name] = []
            entry = name if match["entry"] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _trip_count(line: str, condition: Sequence[str]) -> int:
    """Read how often a loop runs: said in its line, or by `i < constant` in its condition."""
    if match := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(match[1])
    bound = re.compile(r"[su]32\[\].* constant\((\d+)\)")
    bounds = [m[1] for text in condition if (m := bound.search(text))]
    if len(bounds) != 1 or not any("direction=LT" in text for text in condition):
        raise ValueError(f"the trip count of a loop is not known: {line.strip()[:200]}")
    return int(bounds[0])


def _collective(
    line: str, match: re.Match[str], times: int, computation: str, awaited: set[str]
) -> Collective | None:
    """Read one operation; None for another part of one that was counted."""
    kind = match["kind"]
    # The TPU's compiler fuses a reduce-scatter from an all-reduce and a slice, always of channel 1.
    scatter = computation.startswith("all-reduce-scatter")
    channel = re.search(r"channel_id=\d+", line)
    if channel is not None and not scatter:
        part = f"{kind}, {channel[0]}"
        if part in awaited:
            return None
        awaited.add(part)
    sizes = [_size(*array) for array in _ARRAY.findall(match["type"])]
    devices = 2 if kind in ONE_WAY else _group_size(line)
    # The result of a start, or of a send, holds the array beside its source and what awaits it.
    size = max(sizes) if match["start"] or kind == "send" else sum(sizes)
    if kind == "reduce-scatter":
        size *= devices
    return Collective(
        kind="reduce-scatter" if scatter else kind, count=times, bytes=size, devices=devices
    )


def _size(kind: str, shape: str) -> int:
    bits = re.fullmatch(r"[a-z]+(\d+)\w*", kind)
    width = _BYTES[kind] if kind in _BYTES else math.ceil(int(bits[1]) / 8) if bits else 0
    return width * math.prod(int(n) for n in shape.split(",") if n)


def _group_size(line: str) -> int:
    """Read how many devices are in a group: they are listed, or cut from a grid of all devices."""
    if match := re.search(r"replica_groups=\{\{([\d, ]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}:]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    raise ValueError(f"the groups of devices are not known: {line.strip()[:200]}")
