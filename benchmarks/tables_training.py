"""Tables of results of training, and of what training costs."""

from tables import MILLION, judged, mean, new_table, spread


def criteria(result, console):
    """A row per criterion and budget: means over the seeds, their spread, and the claims."""
    drawn = new_table(result["name"], "method", "MACs removed", "seeds", "params")
    for title in ("mIoU", "±", "against dense", "thin", "±"):
        drawn.add_column(title, justify="right")
    groups = {}
    for row in result["rows"]:
        groups.setdefault((row["removed"], row["method"]), []).append(row)
    dense = {row["seed"]: row["miou"] for row in result["rows"] if row["method"] == "dense"}
    for (removed, method), rows in sorted(
        groups.items(), key=lambda group: (group[0][0], -mean(group[1], "miou"))
    ):
        against = sum(row["miou"] - dense[row["seed"]] for row in rows) / len(rows)
        drawn.add_row(
            method,
            f"{100 * removed:.0f} %",
            str(len(rows)),
            f"{mean(rows, 'params'):.3f}",
            f"{mean(rows, 'miou'):.4f}",
            f"{spread(rows, 'miou'):.4f}",
            f"{against:+.4f}",
            f"{mean(rows, 'thin'):.4f}",
            f"{spread(rows, 'thin'):.4f}",
        )
    console.print(drawn)
    claimed = new_table("Claims", "claim", "says", "MACs removed", "of", "difference", "verdict")
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
    drawn = new_table(
        result["name"], "network", "seeds", "params", "MACs, M", "mIoU", "±", "large", "±"
    )
    for title in ("loss", "minutes"):
        drawn.add_column(title, justify="right")
    groups = {}
    for row in result["rows"]:
        groups.setdefault(row["name"], []).append(row)
    for name, rows in sorted(
        groups.items(), key=lambda group: (-group[1][0]["params"], -mean(group[1], "miou"))
    ):
        drawn.add_row(
            name,
            str(len(rows)),
            f"{rows[0]['params']:,}",
            f"{rows[0]['macs'] / MILLION:,.0f}",
            f"{mean(rows, 'miou'):.4f}",
            f"{spread(rows, 'miou'):.4f}",
            f"{mean(rows, 'large'):.4f}",
            f"{spread(rows, 'large'):.4f}",
            f"{mean(rows, 'loss'):.4f}",
            f"{mean(rows, 'seconds') / 60:.1f}",
        )
    console.print(drawn)
    claimed = new_table("Claims and questions", "pair", "says", "seeds", "difference", "verdict")
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
    drawn = new_table(
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
            judged("yes" if row["same_order"] else "no", row["same_order"]) if again else "",
        )
    console.print(drawn)
    drawn = new_table(
        "One look at a batch", "channels", "map", "images", "all pixels, ms", "sampled"
    )
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
    drawn = new_table(
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


def quantisation(result, console):
    """One row per file, and the plainest way to int8 that each network may take."""
    drawn = new_table(
        result["name"], "network", "way", "ranges", "mIoU, float", "mIoU", "points lost"
    )
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
            judged(f"{lost:+.2f}", lost <= goal),
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
