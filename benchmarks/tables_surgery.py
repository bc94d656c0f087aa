"""Tables of results about graphs and surgery."""

from rich.text import Text
from tables import MILLION, judged, new_table


def coverage(result, console):
    """One row per network and the totals.

    Share, MACs and the seconds of plan, shrink (of it Keras' own construction) and check are those
    of the network with its top at half of the MACs; what has a limit is the worst of all inputs
    and budgets, with a mark where it is missed.
    """
    limits = result["limits"]
    drawn = new_table(result["name"], "network", "prunable %", "MACs, M", "after", "off %")
    titles = ("graph, ms", "surgery, s", "plan", "shrink", "Keras", "check", "difference", "passes")
    for title in titles:
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        if "error" in row:
            drawn.add_row(row["name"], Text(row["error"], style="red"), *[""] * 10, "fails")
            continue
        case = next(iter(row["cases"].values()))
        budget = case["budgets"]["0.5"]
        worst, passes = row["worst"], row["passes"]
        drawn.add_row(
            row["name"],
            f"{100 * case['prunable']['share']:.2f}",
            f"{budget['macs'][0] / MILLION:,.0f}",
            f"{budget['macs'][1] / MILLION:,.0f}",
            judged(f"{100 * worst['budget_error']:.3f}", passes["budget_error"]),
            judged(f"{worst['graph_ms']:.1f}", passes["graph_ms"]),
            judged(f"{worst['surgery_s']:.2f}", passes["surgery_s"]),
            f"{budget['plan_s']['median']:.2f}",
            f"{budget['shrink_s']['median']:.2f}",
            f"{budget['keras_s']['median']:.2f}",
            f"{budget['checked_shrink_s'] - budget['shrink_s']['median']:.2f}",
            judged(f"{worst['difference']:.1e}", passes["difference"]),
            "yes" if all(passes.values()) else Text("no", style="red"),
        )
    console.print(drawn)
    _print_budgets(result, console)
    _print_reasons(result, console)
    rows = result["rows"]
    measured = [row for row in rows if "error" not in row]
    console.print(f"{len(rows)} networks, {len(rows) - len(measured)} fail.")
    for key, limit in limits.items():
        having = [row for row in measured if key in row["worst"]]
        if having:
            met = sum(row["passes"][key] for row in having)
            pick = min if key == "prunable" else max
            worst = pick(row["worst"][key] for row in having)
            console.print(f"{key}: {met} of {len(having)} within {limit}, worst {worst:.3g}")


def _print_budgets(result, console):
    drawn = new_table(
        "Other budgets", "network", "asked", "MACs, M", "after", "off %", "difference"
    )
    for row in result["rows"]:
        for case in row.get("cases", {}).values():
            for asked, budget in case["budgets"].items() if len(case["budgets"]) > 1 else ():
                drawn.add_row(
                    row["name"],
                    asked,
                    *(f"{macs / MILLION:,.0f}" for macs in budget["macs"]),
                    f"{100 * budget['budget_error']:.3f}",
                    f"{budget['difference']:.1e}",
                )
    if drawn.row_count:
        console.print(drawn)


def _print_reasons(result, console):
    """Why fewer than 98 % of a network's channels can be pruned."""
    drawn = new_table(
        "Below 98 % prunable", "network", "prunable %", "channels", "why they are kept"
    )
    drawn.columns[-1].justify = "left"
    for row in result["rows"]:
        for case in list(row.get("cases", {}).values())[:1]:
            found = case.get("prunable")
            if found is None or found["share"] >= 0.98:
                continue
            for reason, count in list(found["reasons"].items())[:3]:
                drawn.add_row(row["name"], f"{100 * found['share']:.1f}", str(count), reason)
    if drawn.row_count:
        console.print(drawn)


def surgery(result, console):
    """Seconds of both libraries, least and median of the rounds, and how many times as fast."""
    drawn = new_table(result["name"], "network", "", "graph, ms", "theirs", "forward pass", "ratio")
    for title in ("whole, s", "theirs", "ratio", "without Keras", "ratio", "checked", "ratio"):
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        ours, theirs, ratios = row["ours"], row["theirs"], row["ratios"]
        if ratios is None:
            errors = [row[who]["error"] for who in ("ours", "theirs") if "error" in row[who]]
            drawn.add_row(row["name"], "", Text("; ".join(errors), style="red"))
            continue
        for of in ("min", "median"):
            drawn.add_row(
                row["name"] if of == "min" else "",
                of,
                f"{1e3 * ours['graph_s'][of]:.1f}",
                f"{1e3 * theirs['graph_s'][of]:.0f}",
                f"{1e3 * theirs['forward_s'][of]:.0f}",
                f"{ratios['graph'][of]:.1f}×",
                f"{ours['whole_s'][of]:.2f}",
                f"{theirs['whole_s'][of]:.2f}",
                f"{ratios['whole'][of]:.2f}×",
                f"{ours['whole_without_keras_s'][of]:.2f}",
                f"{ratios['whole_without_keras'][of]:.2f}×",
                f"{ours['whole_checked_s'][of]:.2f}",
                f"{ratios['whole_checked'][of]:.2f}×",
            )
    console.print(drawn)
    compared = [row["ratios"] for row in result["rows"] if row["ratios"]]
    if compared:
        names = compared[0]
        middle = {n: sorted(r[n]["median"] for r in compared)[len(compared) // 2] for n in names}
        shown = ", ".join(f"{name} {value:.2f}×" for name, value in middle.items())
        console.print(f"Middle network's ratio of medians (theirs / ours): {shown}")


def keras_hub(result, console):
    """One row per network, as it comes (closed) and with its layers opened."""
    drawn = new_table(result["name"], "network", "operations", "opened", "without rule", "opened")
    titles = ("created", "opened", "prunable %", "MACs, M", "after", "difference", "of opening")
    for title in titles:
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        closed, opened = row["closed"], row["opened"]
        (budget,) = row["budgets"].values()
        drawn.add_row(
            row["name"],
            *(f"{found['operations']}" for found in (closed, opened)),
            *(f"{len(found['without_rule'])}" for found in (closed, opened)),
            *(f"{found['prunable']['created']:,}" for found in (closed, opened)),
            f"{100 * opened['prunable']['share']:.2f}",
            f"{budget['macs'][0] / MILLION:,.0f}",
            f"{budget['macs'][1] / MILLION:,.0f}",
            f"{budget['difference']:.1e}",
            f"{opened['difference']:.1e}",
        )
    console.print(drawn)
    for row in result["rows"]:
        for reason, count in row["opened"]["prunable"]["reasons"].items():
            console.print(f"{row['name']}: {count} channels are kept, {reason}", markup=False)


def erfnet_family(result, console):
    """One row per network: its size, and what it saves against the first, ours and as printed."""
    drawn = new_table(result["name"], "network", "params", "MACs, G", "as the paper counts")
    for title in ("params saved", "in the paper", "equal", "GFLOPs saved", "in the paper", "equal"):
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        ours, params, gflops = row["ours"], row["saved"]["params"], row["saved"]["gflops"]
        drawn.add_row(
            row["name"],
            f"{ours['params']:,}",
            f"{ours['macs'] / 1e9:.3f}",
            f"{ours['paper_flops'] / 1e9:.3f}",
            f"{params['ours']:,}",
            f"{params['printed']:,}",
            judged("yes" if params["equal"] else "no", params["equal"]),
            f"{gflops['ours']:.3f}",
            f"{gflops['printed']:.3f}",
            judged("yes" if gflops["equal"] else "no", gflops["equal"]),
        )
    console.print(drawn)
    equal = [all(saved["equal"] for saved in row["saved"].values()) for row in result["rows"]]
    console.print(f"{sum(equal)} of {len(equal)} rows save what the paper's do.")


def random_graphs(result, console):
    """How the drawn models are distributed, which operations they hold, and what failed."""
    drawn = new_table(result["name"], "of a graph", *(f"{n} %" for n in _percentiles(result)))
    for name, found in result["percentiles"].items():
        drawn.add_row(name, *(f"{value:.3g}" for value in found.values()))
    console.print(drawn)
    shown = ", ".join(f"{name} {found['graphs']}" for name, found in result["operations"].items())
    console.print(f"Graphs with each operation: {shown}", markup=False)
    console.print(
        f"{result['passed']} of {result['graphs']} graphs pass; {result['prunable_graphs']} have"
        f" prunable channels, {result['pruned_graphs']} lost some."
    )
    for row in result["failures"]:
        console.print(f"{row['seed']}: {row['error'][:300]}", markup=False, style="red")


def _percentiles(result):
    return next(iter(result["percentiles"].values()), {})
