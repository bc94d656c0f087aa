"""Tables of results about exported files."""

from rich.text import Text
from tables import MILLION, interval, judged, new_table


def grouped_export(result, console):
    """One row per file: its ops, its difference to Keras, and its time against the first's."""
    drawn = new_table(result["name"], "network", "lowering", "MACs, M", "KiB", "ops")
    for title in ("CONV_2D", "DEPTHWISE", "SPLIT", "CONCAT", "difference"):
        drawn.add_column(title, justify="right")
    for title in ("p50, ms", "ratio", "95 %", "realised", "to grouped"):
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        ops = ("CONV_2D", "DEPTHWISE_CONV_2D", "SPLIT", "CONCATENATION")
        ratio, against = row.get("ratio"), row.get("to_grouped")
        drawn.add_row(
            row["name"],
            row["lowering"] or "",
            f"{row['macs'] / MILLION:,.0f}",
            f"{row['bytes'] / 1024:,.0f}",
            f"{sum(row['ops'].values())}",
            *(f"{row['ops'].get(op, 0)}" for op in ops),
            judged(f"{row['relative_diff']:.1e}", row["equal"]),
            f"{row['latency_ms']['p50']:.2f}",
            f"{ratio['value']:.3f}" if ratio else "1",
            interval(ratio) if ratio else "",
            f"{row['realised']:.3f}" if ratio else "",
            f"{against['value']:.3f}" if against else "",
        )
    console.print(drawn)
    equal = sum(row["equal"] for row in result["rows"])
    limit = result["limits"]["relative_diff"]
    console.print(f"{equal} of {len(result['rows'])} files answer as Keras within {limit}.")
    shaky = [
        f"{row['name']} {row['lowering'] or ''}".strip()
        for row in result["rows"]
        if not row["steady"]
    ]
    if shaky:
        console.print(f"Not steady after warm-up: {', '.join(shaky)}; trust the ratios only.")
    told = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
    console.print(told, markup=False)


def fuzz(result, console):
    """What came of the tries, stage by stage and mutation by mutation."""
    outcomes = dict.fromkeys(name for found in result["stages"].values() for name in found)
    drawn = new_table(result["name"], "stage", *outcomes)
    for stage, found in result["stages"].items():
        drawn.add_row(stage, *(f"{found.get(name, 0):,}" for name in outcomes))
    console.print(drawn)
    kinds = dict.fromkeys(name for found in result["mutations"].values() for name in found)
    drawn = new_table("What reading them says", "mutation", *kinds)
    for mutation, found in result["mutations"].items():
        drawn.add_row(mutation, *(f"{found.get(name, 0):,}" for name in kinds))
    console.print(drawn)
    console.print(
        f"{result['passed']:,} of {result['tries']:,} tries pass; the longest took"
        f" {result['longest_s']:.1f} s, the largest {result['memory_mib']:.0f} MiB."
    )
    for row in result["failures"]:
        console.print(f"{row['seed']}: {row}"[:300], markup=False, style="red")


def gpu_table(result, console):
    """One row per file: what the GPU delegate made of it, and the pixels that get Keras' class."""
    drawn = new_table(result["name"], "network", "size", "MACs, M", "file", "accelerated", "status")
    for title in ("CPU %", "GPU %", "in float32", "rms", "lowered", "findings"):
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        network = f"{row['name']} {row['variant']}{', trained' if row['trained'] else ''}"
        size = f"{row['size'][1]}x{row['size'][0]}"
        if "error" in row:
            drawn.add_row(network, size, "", row["precision"], "", Text("fails", style="red"))
            continue
        goals, again = result["goals"][row["precision"]], row.get("gpu_in_float32") or {}
        agreements = [
            judged(f"{100 * row[where]['agreement']:.3f}", row[where]["agreement"] >= goal)
            if row[where]
            else ""
            for where, goal in goals.items()
        ]
        accelerated = {True: "yes", False: "no", None: "unknown"}[row["fully_accelerated"]]
        drawn.add_row(
            network,
            size,
            f"{row['macs'] / MILLION:,.0f}",
            row["precision"],
            judged(accelerated, row["fully_accelerated"]),
            judged(row["status"], row["status"] == "passed"),
            *agreements,
            f"{100 * again['agreement']:.3f}" if "agreement" in again else "",
            f"{row['gpu']['rms']:.1e}" if row["gpu"] else "",
            f"{len(row['lowered'])}",
            f"{len(row['findings'])}",
        )
    console.print(drawn)
    rows = result["rows"]
    whole = sum(bool(row.get("fully_accelerated")) for row in rows)
    passed = sum(row["passes"] for row in rows)
    console.print(f"{whole} of {len(rows)} files are fully accelerated, {passed} meet all goals.")
    for row in rows:
        told = f"{row['name']} {row['variant']} {row['precision']}"
        for reason in [row["error"]] if "error" in row else row["reasons"]:
            console.print(f"{told}: {reason}", markup=False, soft_wrap=True)
    drivers = {row["driver"] for row in rows if row.get("driver")}
    console.print(f"GPU: {', '.join(sorted(drivers)) or 'none'}", markup=False)


def alignment(result, console):
    """One row per file: MACs, padded MACs, latency against the dense one, and where it went."""
    drawn = new_table(result["name"], "network", "widths", "MACs, M", "padded", "p50, ms", "ratio")
    for title in ("95 %", "realised", "to any width", "MACs", "kernels", "mix", "no MACs"):
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        for item in row["files"]:
            found, gain = item.get("why"), item.get("to_any_width")
            whole = item["align"] is None
            parts = (
                [f"{-found[part]:+.3f}" for part in ("kernels", "mix", "without_macs")]
                if found
                else [""] * 3
            )
            drawn.add_row(
                f"{row['name']} {row['size'][1]}x{row['size'][0]}" if whole else "",
                "dense" if whole else str(item["align"]),
                f"{item['macs'] / MILLION:,.0f}",
                f"{item['padded_macs'] / MILLION:,.0f}",
                f"{item['latency_ms']['p50']:.2f}",
                "1" if whole else f"{item['ratio']['value']:.3f}",
                "" if whole else interval(item["ratio"]),
                "" if whole else judged(f"{item['realised']:.3f}", item["meets_goal"]),
                f"{gain['latency']['value']:.3f}" if gain else "",
                f"{gain['macs']:.3f}" if gain else "",
                *parts,
            )
    console.print(drawn)
    small = [(row, item) for row in result["rows"] for item in row["files"][1:]]
    met = sum(item["meets_goal"] for _, item in small)
    goal = result["limits"]["realised"]
    console.print(f"{met} of {len(small)} files realise {goal} of what their MACs promise.")
    for row, item in small:
        if not item["meets_goal"] and "why" in item:
            lost = ", ".join(
                f"{op['layer']} {op['ms'][0]:.2f} to {op['ms'][1]:.2f} ms at"
                f" {op['macs'][1] / op['macs'][0]:.2f} of its MACs"
                for op in item["why"]["ops"][:3]
            )
            told = f"{row['name']}, {item['name']}: {lost}"
            for kind, found in list(item["why"]["kinds"].items())[:3]:
                before, after = found["macs"]
                told += f"; all {kind} {found['ms'][0]:.2f} to {found['ms'][1]:.2f} ms"
                told += f" at {after / before:.2f}" if before else ""
            console.print(told, markup=False, soft_wrap=True)
    for row in result["rows"]:
        if row["unprofiled"]:
            console.print(f"{row['name']}: no profile, {row['unprofiled']}", markup=False)
        shaky = [item["name"] for item in row["files"] if not item["steady"]]
        if shaky:
            console.print(f"{row['name']}: not steady after warm-up: {', '.join(shaky)}")
