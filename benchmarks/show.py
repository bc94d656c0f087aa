"""Prints the table of any committed result.

python benchmarks/show.py benchmarks/results/coverage.json

A result says its command, commit, seed, versions, machine and date beside the figures, and by
`"kind"` what its table is; without one it is the `summary.json` of a run.
"""

import json
import statistics
import sys

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tfseg_prune.report import table

PROVENANCE = ("command", "commit", "seed", "versions", "machine", "date")
_MILLION = 1e6


def main(paths):
    if not paths:
        sys.exit(__doc__)
    for path in paths:
        with open(path) as file:
            result = json.load(file)
        # Piped into a file or a pager there is no screen whose width a table must fit.
        console = Console(width=None if sys.stdout.isatty() else 160)
        KINDS[result.get("kind")](result, console)
        for key in PROVENANCE:
            console.print(f"{key}: {result[key]}", markup=False, soft_wrap=True)


def coverage(result, console):
    """One row per network and the totals.

    Share, MACs and the seconds of plan, shrink (of it Keras' own construction) and check are those
    of the network with its top at half of the MACs; what has a limit is the worst of all inputs
    and budgets, with a mark where it is missed.
    """
    limits = result["limits"]
    drawn = _table(result["name"], "network", "prunable %", "MACs, M", "after", "off %")
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
            f"{budget['macs'][0] / _MILLION:,.0f}",
            f"{budget['macs'][1] / _MILLION:,.0f}",
            _judged(f"{100 * worst['budget_error']:.3f}", passes["budget_error"]),
            _judged(f"{worst['graph_ms']:.1f}", passes["graph_ms"]),
            _judged(f"{worst['surgery_s']:.2f}", passes["surgery_s"]),
            f"{budget['plan_s']['median']:.2f}",
            f"{budget['shrink_s']['median']:.2f}",
            f"{budget['keras_s']['median']:.2f}",
            f"{budget['checked_shrink_s'] - budget['shrink_s']['median']:.2f}",
            _judged(f"{worst['difference']:.1e}", passes["difference"]),
            "yes" if all(passes.values()) else Text("no", style="red"),
        )
    console.print(drawn)
    _print_budgets(result, console)
    _print_reasons(result, console)
    rows = result["rows"]
    measured = [row for row in rows if "error" not in row]
    console.print(f"{len(rows)} networks, {len(rows) - len(measured)} fail.")
    for key, limit in limits.items():
        judged = [row for row in measured if key in row["worst"]]
        if judged:
            met = sum(row["passes"][key] for row in judged)
            pick = min if key == "prunable" else max
            worst = pick(row["worst"][key] for row in judged)
            console.print(f"{key}: {met} of {len(judged)} within {limit}, worst {worst:.3g}")


def _print_budgets(result, console):
    drawn = _table("Other budgets", "network", "asked", "MACs, M", "after", "off %", "difference")
    for row in result["rows"]:
        for case in row.get("cases", {}).values():
            for asked, budget in case["budgets"].items() if len(case["budgets"]) > 1 else ():
                drawn.add_row(
                    row["name"],
                    asked,
                    *(f"{macs / _MILLION:,.0f}" for macs in budget["macs"]),
                    f"{100 * budget['budget_error']:.3f}",
                    f"{budget['difference']:.1e}",
                )
    if drawn.row_count:
        console.print(drawn)


def _print_reasons(result, console):
    """Why fewer than 98 % of a network's channels can be pruned."""
    drawn = _table("Below 98 % prunable", "network", "prunable %", "channels", "why they are kept")
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
    drawn = _table(result["name"], "network", "", "graph, ms", "theirs", "forward pass", "ratio")
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
    drawn = _table(result["name"], "network", "operations", "opened", "without rule", "opened")
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
            f"{budget['macs'][0] / _MILLION:,.0f}",
            f"{budget['macs'][1] / _MILLION:,.0f}",
            f"{budget['difference']:.1e}",
            f"{opened['difference']:.1e}",
        )
    console.print(drawn)
    for row in result["rows"]:
        for reason, count in row["opened"]["prunable"]["reasons"].items():
            console.print(f"{row['name']}: {count} channels are kept, {reason}", markup=False)


def erfnet_family(result, console):
    """One row per network: its size, and what it saves against the first, ours and as printed."""
    drawn = _table(result["name"], "network", "params", "MACs, G", "as the paper counts")
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
            _judged("yes" if params["equal"] else "no", params["equal"]),
            f"{gflops['ours']:.3f}",
            f"{gflops['printed']:.3f}",
            _judged("yes" if gflops["equal"] else "no", gflops["equal"]),
        )
    console.print(drawn)
    equal = [all(saved["equal"] for saved in row["saved"].values()) for row in result["rows"]]
    console.print(f"{sum(equal)} of {len(equal)} rows save what the paper's do.")


def grouped_export(result, console):
    """One row per file: its ops, its difference to Keras, and its time against the first's."""
    drawn = _table(result["name"], "network", "lowering", "MACs, M", "KiB", "ops")
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
            f"{row['macs'] / _MILLION:,.0f}",
            f"{row['bytes'] / 1024:,.0f}",
            f"{sum(row['ops'].values())}",
            *(f"{row['ops'].get(op, 0)}" for op in ops),
            _judged(f"{row['relative_diff']:.1e}", row["equal"]),
            f"{row['latency_ms']['p50']:.2f}",
            f"{ratio['value']:.3f}" if ratio else "1",
            _interval(ratio) if ratio else "",
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


def _interval(ratio):
    return f"{ratio['low']:.3f}-{ratio['high']:.3f}"


def criteria(result, console):
    """A row per criterion and budget: means over the seeds, their spread, and the claims."""
    drawn = _table(result["name"], "method", "MACs removed", "seeds", "params")
    for title in ("mIoU", "±", "against dense", "thin", "±"):
        drawn.add_column(title, justify="right")
    groups = {}
    for row in result["rows"]:
        groups.setdefault((row["removed"], row["method"]), []).append(row)
    dense = {row["seed"]: row["miou"] for row in result["rows"] if row["method"] == "dense"}
    for (removed, method), rows in sorted(
        groups.items(), key=lambda group: (group[0][0], -_mean(group[1], "miou"))
    ):
        against = sum(row["miou"] - dense[row["seed"]] for row in rows) / len(rows)
        drawn.add_row(
            method,
            f"{100 * removed:.0f} %",
            str(len(rows)),
            f"{_mean(rows, 'params'):.3f}",
            f"{_mean(rows, 'miou'):.4f}",
            f"{_spread(rows, 'miou'):.4f}",
            f"{against:+.4f}",
            f"{_mean(rows, 'thin'):.4f}",
            f"{_spread(rows, 'thin'):.4f}",
        )
    console.print(drawn)
    claimed = _table("Claims", "claim", "says", "MACs removed", "of", "difference", "verdict")
    for claim in result["claims"]:
        claimed.add_row(
            claim["claim"],
            claim["says"],
            f"{100 * claim['removed']:.0f} %",
            claim["score"],
            f"{claim['mean']:+.4f}",
            claim["verdict"],
        )
    console.print(claimed)


def grouping(result, console):
    """A row per network, the largest first: means over the seeds, their spread, and the claims."""
    drawn = _table(
        result["name"], "network", "seeds", "params", "MACs, M", "mIoU", "±", "large", "±"
    )
    for title in ("loss", "minutes"):
        drawn.add_column(title, justify="right")
    groups = {}
    for row in result["rows"]:
        groups.setdefault(row["name"], []).append(row)
    for name, rows in sorted(
        groups.items(), key=lambda group: (-group[1][0]["params"], -_mean(group[1], "miou"))
    ):
        drawn.add_row(
            name,
            str(len(rows)),
            f"{rows[0]['params']:,}",
            f"{rows[0]['macs'] / _MILLION:,.0f}",
            f"{_mean(rows, 'miou'):.4f}",
            f"{_spread(rows, 'miou'):.4f}",
            f"{_mean(rows, 'large'):.4f}",
            f"{_spread(rows, 'large'):.4f}",
            f"{_mean(rows, 'loss'):.4f}",
            f"{_mean(rows, 'seconds') / 60:.1f}",
        )
    console.print(drawn)
    claimed = _table("Claims and questions", "pair", "says", "seeds", "difference", "verdict")
    claimed.columns[1].justify = "left"
    for claim in result["claims"]:
        claimed.add_row(
            claim["pair"],
            claim["says"] + ("?" if claim["kind"] == "asked" else ""),
            str(len(claim["by_seed"])),
            "" if claim["mean"] is None else f"{claim['mean']:+.4f}",
            claim["verdict"],
        )
    console.print(claimed)
    console.print(f"{len(result['rows'])} of {result['wanted']} rows are there.")


def redundancy(result, console):
    """What the elimination, the metric and the observers take, and how each grows."""
    drawn = _table(
        f"{result['name']}: elimination", "channels", "ms", "least", "MiB", "matrix, MiB"
    )
    for title in ("sums anew, ms", "ratio", "same order"):
        drawn.add_column(title, justify="right")
    for row in result["elimination"]:
        again = "ratio" in row
        drawn.add_row(
            f"{row['channels']}",
            f"{1e3 * row['seconds']['median']:.1f}",
            f"{1e3 * row['seconds']['min']:.1f}",
            f"{row['peak_mib']:.1f}",
            f"{row['matrix_mib']:.1f}",
            f"{1e3 * row['resummed_seconds']['median']:.1f}" if again else "",
            f"{row['ratio']:.1f}×" if again else "",
            _judged("yes" if row["same_order"] else "no", row["same_order"]) if again else "",
        )
    console.print(drawn)
    drawn = _table("One look at a batch", "channels", "map", "images", "all pixels, ms", "sampled")
    for title in ("all pixels, MiB", "sampled"):
        drawn.add_column(title, justify="right")
    for row in result["metric"]:
        drawn.add_row(
            f"{row['channels']}",
            f"{row['side']}x{row['side']}",
            f"{row['images']}",
            f"{1e3 * row['full']['median']:.1f}",
            f"{1e3 * row['sampled']['median']:.1f}",
            *(_mebibytes(row[name]["peak_mib"]) for name in ("full", "sampled")),
        )
    console.print(drawn)
    drawn = _table(
        f"Training steps of {result['batch_size']} images", "network", "observers", "step, ms"
    )
    for title in ("ratio", "lowest", "highest"):
        drawn.add_column(title, justify="right")
    for row in result["overhead"]:
        for name, found in row["variants"].items():
            drawn.add_row(
                row["name"] if name == "without" else "",
                name,
                f"{1e3 * found['step_s']['median']:.0f}",
                *(f"{found[key]:.3f}" for key in ("ratio", "lowest_ratio", "highest_ratio")),
            )
    console.print(drawn)
    for name, power in result["growth"].items():
        if power is not None:
            console.print(f"{name.replace('_', ' ')} grows with the power {power:.2f}")
    for name, (figure, met) in result["judged"].items():
        limit = result["limits"][name]
        console.print(f"{name}: {figure:.3g}, {'within' if met else 'misses'} {limit}")


def _mebibytes(value):
    return "" if value is None else f"{value:.0f}"


def _mean(rows, key):
    return statistics.mean(row[key] for row in rows)


def _spread(rows, key):
    return statistics.stdev(row[key] for row in rows) if len(rows) > 1 else float("nan")


def _table(title, *columns):
    drawn = Table(title=Text(title), title_justify="left", box=rich.box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="right" if position else "left")
    return drawn


def _judged(text, passes):
    return text if passes else Text(f"{text} !", style="red")


def random_graphs(result, console):
    """How the drawn models are distributed, which operations they hold, and what failed."""
    drawn = _table(result["name"], "of a graph", *(f"{n} %" for n in _percentiles(result)))
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


def fuzz(result, console):
    """What came of the tries, stage by stage and mutation by mutation."""
    outcomes = dict.fromkeys(name for found in result["stages"].values() for name in found)
    drawn = _table(result["name"], "stage", *outcomes)
    for stage, found in result["stages"].items():
        drawn.add_row(stage, *(f"{found.get(name, 0):,}" for name in outcomes))
    console.print(drawn)
    kinds = dict.fromkeys(name for found in result["mutations"].values() for name in found)
    drawn = _table("What reading them says", "mutation", *kinds)
    for mutation, found in result["mutations"].items():
        drawn.add_row(mutation, *(f"{found.get(name, 0):,}" for name in kinds))
    console.print(drawn)
    console.print(
        f"{result['passed']:,} of {result['tries']:,} tries pass; the longest took"
        f" {result['longest_s']:.1f} s, the largest {result['memory_mib']:.0f} MiB."
    )
    for row in result["failures"]:
        console.print(f"{row['seed']}: {row}"[:300], markup=False, style="red")


def quantisation(result, console):
    """One row per file, and the plainest way to int8 that each network may take."""
    drawn = _table(result["name"], "network", "way", "ranges", "mIoU, float", "mIoU", "points lost")
    for title in ("as Keras, %", "KiB", "float ops", "GPU rules", "seconds"):
        drawn.add_column(title, justify="right")
    for row in result["rows"]:
        lost, goal = row["loss_points"], result["goal_points"]
        drawn.add_row(
            row["network"],
            row["way"],
            f"{row['representative_images'] or ''}",
            f"{row['miou_float']:.4f}",
            f"{row['miou']:.4f}",
            _judged(f"{lost:+.2f}", lost <= goal),
            f"{100 * row['argmax_agreement']:.2f}",
            f"{row['bytes'] / 1024:,.0f}",
            f"{row['float_ops']} of {row['ops']}",
            f"{len(row['findings']) or 'pass'}",
            f"{row['seconds']:.0f}",
        )
    console.print(drawn)
    for row in result["rows"]:
        if "float_layers" in row:
            left = ", ".join(row["float_layers"]) or "none"
            console.print(f"{row['network']}, {row['way']}: in float {left}", markup=False)
        if "miou_trained_float" in row:
            gained = f"mIoU {row['miou_trained_float']:.4f} in float after the training"
            console.print(f"{row['network']}, {row['way']}: {gained}")
    for name, way in result["verdicts"].items():
        reached = f"by {way}" if way else "by no way"
        console.print(f"{name}: within {result['goal_points']:.0f} point {reached}", markup=False)


def gpu_table(result, console):
    """One row per file: what the GPU delegate made of it, and the pixels that get Keras' class."""
    drawn = _table(result["name"], "network", "size", "MACs, M", "file", "accelerated", "status")
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
            _judged(f"{100 * row[where]['agreement']:.3f}", row[where]["agreement"] >= goal)
            if row[where]
            else ""
            for where, goal in goals.items()
        ]
        accelerated = {True: "yes", False: "no", None: "unknown"}[row["fully_accelerated"]]
        drawn.add_row(
            network,
            size,
            f"{row['macs'] / _MILLION:,.0f}",
            row["precision"],
            _judged(accelerated, row["fully_accelerated"]),
            _judged(row["status"], row["status"] == "passed"),
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
        if row["precision"] == "float32":
            for says in row.get("lowered", ()):
                console.print(f"{told}, lowered: {says}", markup=False, soft_wrap=True)
    drivers = {row["driver"] for row in rows if row.get("driver")}
    console.print(f"GPU: {', '.join(sorted(drivers)) or 'none'}", markup=False)


def alignment(result, console):
    """One row per file: MACs, padded MACs, latency against the dense one, and where it went."""
    drawn = _table(result["name"], "network", "widths", "MACs, M", "padded", "p50, ms", "ratio")
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
                f"{item['macs'] / _MILLION:,.0f}",
                f"{item['padded_macs'] / _MILLION:,.0f}",
                f"{item['latency_ms']['p50']:.2f}",
                "1" if whole else f"{item['ratio']['value']:.3f}",
                "" if whole else _interval(item["ratio"]),
                "" if whole else _judged(f"{item['realised']:.3f}", item["meets_goal"]),
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


def _percentiles(result):
    return next(iter(result["percentiles"].values()), {})


KINDS = {
    None: lambda result, console: table.print_summary(result, console=console),
    "alignment": alignment,
    "coverage": coverage,
    "criteria": criteria,
    "erfnet_family": erfnet_family,
    "fuzz": fuzz,
    "gpu_table": gpu_table,
    "grouped_export": grouped_export,
    "grouping": grouping,
    "keras_hub": keras_hub,
    "quantisation": quantisation,
    "redundancy": redundancy,
    "surgery": surgery,
    "random_graphs": random_graphs,
}


if __name__ == "__main__":
    main(sys.argv[1:])
