"""Many SMILES read by RDKit at once, on all cores: which are valid, and their canonical form.

Reading one takes RDKit some 0.15 ms, so that a file of 100,000 reactions takes a single core half a
minute. The work is shared out to processes that run this module as a filter, which unlike a process
pool asks nothing of the program that is running; the result is kept in the user's cache folder.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence

import rdkit
from rdkit import Chem

from common.files import replace, user_cache
from molt5_multitask import chem

SERIAL = 10_000
"""Up to so many compounds are read in this process: starting others takes longer."""


def standardise(sides: Sequence[str], *, canonical: bool) -> list[str | None]:
    """Check molecules or sides of reactions.

    Args:
      sides: SMILES; `.` separates compounds, `~` the fragments of one.
      canonical: rewrite each: without atom maps, compounds canonical, sorted and joined by `.`, as
        the IBM RXN convention has it. Else a valid side comes back as it is.

    Returns:
      One string for each side, None where RDKit does not read it.
    """
    known = _read_all({c for side in sides for c in side.split(".")}, canonical=canonical)
    # Of compounds that are not valid by themselves, bonds may close across the dot: `C1.C1`.
    whole = {side for side in sides if not all(known[c] for c in side.split("."))}
    known |= _read_all(whole, canonical=canonical)

    def standard(side: str) -> str | None:
        parts = [known[side]] if side in whole else [known[c] for c in side.split(".")]
        if not all(parts):
            return None
        return ".".join(sorted(parts)) if canonical else side

    return [standard(side) for side in sides]


def _read_all(compounds: set[str], *, canonical: bool) -> dict[str, str]:
    """Return what `_read` gives for each compound, from the cache where it was read before."""
    # A SMILES is ASCII; what follows a space is a name to RDKit, not part of the molecule.
    sound = sorted(c for c in compounds if c.isascii() and len(c.split()) == 1 and c == c.strip())
    known = dict.fromkeys(compounds, "")
    if len(sound) <= SERIAL:
        return known | {c: _read(c, canonical=canonical) for c in sound}
    key = "\n".join([rdkit.__version__, str(canonical), *sound])
    cache = user_cache()
    file = cache and cache / f"smiles-{hashlib.sha256(key.encode()).hexdigest()[:32]}.txt"
    if file and file.is_file():
        return known | dict(zip(sound, file.read_text().split("\n"), strict=True))
    found = _filter(sound, canonical=canonical)
    if file:
        with contextlib.suppress(OSError):  # Where the cache cannot be written, there is none.
            replace(file, "\n".join(found).encode())
    return known | dict(zip(sound, found, strict=True))


def _filter(compounds: Sequence[str], *, canonical: bool) -> list[str]:
    """Read the compounds in as many processes as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command = [sys.executable, "-m", __name__, *(["--canonical"] if canonical else [])]

    def run(part: Sequence[str]) -> list[str]:
        text = "".join(f"{compound}\n" for compound in part)
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.split("\n")[: len(part)]

    size = -(-len(compounds) // (cores or 1))
    parts = [compounds[i : i + size] for i in range(0, len(compounds), size)]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
        return list(itertools.chain.from_iterable(threads.map(run, parts)))


def _read(compound: str, *, canonical: bool) -> str:
    """Return the compound, or its canonical form; the empty string where RDKit does not read it."""
    mol = chem.parse(compound)
    if mol is None or not mol.GetNumAtoms():
        return ""
    if not canonical:
        return compound
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    # Without its map a hydrogen may be implicit: read it once more.
    fragments = (chem.canonical(Chem.MolToSmiles(mol)) or "").split(".")
    return ("~" if "~" in compound else ".").join(sorted(fragments))


def _main() -> None:
    canonical = "--canonical" in sys.argv
    for line in sys.stdin:
        print(_read(line.removesuffix("\n"), canonical=canonical))


if __name__ == "__main__":
    _main()
