"""Numbers of a study as JSON and Markdown."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.files import local_folder
from common.report import provenance, table


def spread(values: Sequence[float]) -> str:
    """Write the median and the range of the members' values."""
    if len(values) == 1:
        return f"{values[0]:.2g}"
    return f"{np.median(values):.2g} [{min(values):.2g}, {max(values):.2g}]"


def claims(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the paper's claims, and those beyond it, with the number that each regime gives."""
    found = []

    def add(name: str, claim: str, quantity: str, values: Sequence[float]) -> None:
        found.append(
            {
                "regime": name,
                "claim": claim,
                "quantity": quantity,
                "median": float(np.median(values)),
                "members": list(values),
            }
        )

    for name, result in results.items():
        first, *later = result["coefficients"]
        one = "one network is right to the leading order and wrong in the next"
        add(name, one, "order 1 after iteration 1", first["known"]["1"]["members"])
        add(name, one, "order 2 after iteration 1", first["beyond"]["2"]["members"])
        for entry in later:
            n = str(entry["iteration"])
            learned = f"iteration {n} learns order {n}, lower orders eliminated"
            add(name, learned, f"order {n}", entry["known"][n]["members"])
            corrected = f"iteration {n} corrects order 1 (not in the paper)"
            add(name, corrected, "order 1", entry["known"]["1"]["members"])
        for n, errors in result["test"]["order"].items():
            if n != "1":
                proxy = f"the terms together are a learned Born approximation of order {n}"
                add(name, proxy, "proxy against the exact one", errors["proxy_vs_born"])
                add(name, proxy, "proxy against the exact a0", errors["proxy_vs_a0"])
                add(name, proxy, "exact one against the exact a0", [errors["born_vs_a0"]])
    return found


def claim_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate the claims."""
    rows = [(c["regime"], c["claim"], c["quantity"], spread(c["members"])) for c in found]
    return table(("regime", "claim", "relative error of", "median [range over members]"), rows)


def coefficient_table(results: Mapping[str, Any]) -> str:
    """Tabulate the errors of the Taylor terms, by regime, iteration and order."""
    rows = []
    for name, result in results.items():
        for entry in result["coefficients"]:
            for order, errors in entry["known"].items():
                plain = entry["uncorrected"][order]
                rows.append(
                    (
                        name,
                        str(entry["iteration"]),
                        order,
                        spread(errors["members"]),
                        f"{errors['mean']:.2g}",
                        spread(plain["members"]),
                    )
                )
            for order, errors in entry["beyond"].items():
                rows.append(
                    (
                        name,
                        str(entry["iteration"]),
                        f"{order} (beyond)",
                        spread(errors["members"]),
                        f"{errors['mean']:.2g}",
                        "",
                    )
                )
        if "polynomial" in result:
            poly = result["polynomial"]
            for order, error in poly["errors"].items():
                rows.append(
                    (name, f"polynomial of degree {poly['degree']}", order, f"{error:.2g}", "", "")
                )
    header = (
        "regime",
        "after iteration",
        "order",
        "members: median [range]",
        "ensemble mean",
        "without correction",
    )
    return table(header, rows)


def proxy_table(results: Mapping[str, Any]) -> str:
    """Tabulate the errors of the learned Born approximations over the test potentials."""
    rows = []
    for name, result in results.items():
        for order, errors in result["test"]["order"].items():
            rows.append(
                (
                    name,
                    order,
                    spread(errors["proxy_vs_born"]),
                    spread(errors["uncorrected_proxy_vs_born"]),
                    spread(errors["proxy_vs_a0"]),
                    f"{errors['born_vs_a0']:.2g}",
                )
            )
    header = (
        "regime",
        "order",
        "proxy against exact Born",
        "without correction",
        "proxy against exact a0",
        "exact Born against exact a0",
    )
    return table(header, rows)


def write(
    workdir: str,
    title: str,
    results: Mapping[str, Any],
    extra: Mapping[str, Any],
    figures: Sequence[str],
) -> str:
    """Write `results.json` and `results.md` into the work folder; return the Markdown."""
    origin = provenance()
    found = claims(results)
    document = {**origin, "claims": found, "regimes": results, **extra}
    parts = [
        f"# {title}",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        "Errors are relative L2 errors against exact Born tensors, which never enter training.",
        "## Claims",
        claim_table(found),
        "## Taylor coefficients",
        coefficient_table(results),
        "## Learned Born approximations on test potentials",
        proxy_table(results),
    ]
    if figures:
        parts += [
            "## Figures",
            *[f"![{pathlib.PurePath(f).stem}]({f})" for f in figures],
        ]
    text = "\n\n".join(parts) + "\n"
    with local_folder(workdir) as folder:
        (folder / "results.json").write_text(json.dumps(document, indent=2))
        (folder / "results.md").write_text(text)
    return text
