"""Print the report of `compile-for`."""

import logging
from typing import Any

from jaxdepth.commands.compile import chips as chips_lib
from jaxdepth.runtime import terminal

logger = logging.getLogger("jaxdepth.tools")
# Printed unit of a cost, and its size.
UNITS = {"cycles": ("kcycles", 1e3), "seconds": ("us", 1e-6)}


def summary(report: dict[str, Any]) -> str:
    """One line of a report."""
    used = report["memory"]
    cost = {
        "cycles": f"{report['cost_per_image'] / 1e6:.3f} Mcycles an image",
        "seconds": f"{1e6 * report['cost_per_image']:.0f} us an image",
    }[report["cost_unit"]]
    return (
        f"{report['target']}, {report['images_per_device']} images a device: "
        f"{report['flops_per_image'] / 1e9:.1f} GFLOP, "
        f"{report['bytes_per_image'] / 1e6:.1f} MB and {cost}, {report['kernels']} "
        f"kernels, {used['used'] / 2**30:.1f} of {used['available'] / 2**30:.1f} GiB, "
        f"compiled in {report['compile_seconds']:.0f} s"
    )


def show(report: dict[str, Any]) -> None:
    """Print a report."""
    logger.info(
        f"{report['block'] or 'the training step'} for {report['target']} (devices: "
        f"{report['devices']}, hosts: {report['hosts']}), {report['batch_size']} "
        "images in all"
    )
    logger.info(summary(report))
    parts = report["memory"].items()
    rows = [(name, round(size / 2**20)) for name, size in parts]
    terminal.print_table("memory of a device [MiB]", ("what", "MiB"), rows)
    _show_kinds(report)
    _show_groups(report)
    _show_costliest(report)
    _show_collectives(report)
    _show_rates(report)
    _show_problems(report)


def _show_kinds(report: dict[str, Any]) -> None:
    images = report["images_per_call"]
    rows: list[tuple[Any, ...]] = [
        (name, kind["kernels"], kind["traffic"] / images / 1e6)
        for name, kind in report["kinds"].items()
    ]
    rows.append(("all", *(sum(row[k] for row in rows) for k in (1, 2))))
    columns = ("kind", "kernels in a call", "traffic MB an image")
    terminal.print_table("kernels by kind", columns, rows)


def _show_groups(report: dict[str, Any]) -> None:
    images, (unit, size) = report["images_per_call"], UNITS[report["cost_unit"]]
    total = report["cost_per_image"] * images
    rows: list[tuple[Any, ...]] = []
    for name, group in report["groups"].items():
        cost = group["forward"], group["gradient"]
        printed = (value / images / size for value in cost)
        traffic = group["traffic"] / images / 1e6
        share = f"{sum(cost) / total:.1%}" if total else "-"
        rows.append((name, *printed, share, traffic, group["kernels"]))
    forward, gradient, traffic, kernels = (
        sum(row[k] for row in rows) for k in (1, 2, 4, 5)
    )
    rows.append(("all", forward, gradient, "100.0%", traffic, kernels))
    columns = ("part", f"forward {unit}", f"gradient {unit}", "share", "traffic MB")
    title = "estimated costs and traffic an image"
    terminal.print_table(title, (*columns, "kernels in a call"), rows)


def _show_costliest(report: dict[str, Any]) -> None:
    images, (unit, size) = report["images_per_call"], UNITS[report["cost_unit"]]
    total = report["cost_per_image"] * images
    rows = [
        (
            f"{entry['module']}, {entry['pass']}",
            entry["cost"] / images / size,
            f"{entry['cost'] / total:.1%}",
            entry["traffic"] / images / 1e6,
            entry["kind"],
            entry["primitive"] or entry["opcode"],
            entry["name"],
        )
        for entry in report["costliest"]
    ]
    columns = ("where", unit, "share", "traffic MB", "kind", "what", "name")
    terminal.print_table("the most expensive kernels, an image", columns, rows)
    for entry in report["unestimated"]:
        logger.info(
            f"no estimate: {entry['module']} ({entry['primitive'] or entry['opcode']}, "
            f"{entry['name']}), {entry['traffic'] / images / 1e6:.1f} MB an image"
        )


def _show_collectives(report: dict[str, Any]) -> None:
    if report["devices"] == 1:
        logger.info("one device has no collectives: use several for the scaling")
        return
    rows = [
        (f"{e['kind']}: {e['purpose']}", e["count"], e["bytes"] / 1024)
        for e in report["exchanges"]
    ]
    terminal.print_table("collectives in a call", ("what", "count", "KiB"), rows)
    columns = ("devices", "latency ms", "transfer ms", "efficiency")
    rows = [
        (str(n), latency, transfer, f"{efficiency:.1%}")
        for n, latency, transfer, efficiency in map(dict.values, report["scaling"])
    ]
    title = "weak scaling of the roofline, without overlap"
    terminal.print_table(title, columns, rows)


def _show_rates(report: dict[str, Any]) -> None:
    chip = chips_lib.Slice.named(report["target"]).chip
    rates = {k: v for k, v in report["images_per_s"].items() if k != "bound"}
    what = {
        "roofline": f"bound by {report['images_per_s']['bound']}",
        "compute": _peaks(report, chip),
        "memory": f"at {chip.bandwidth / 1e9:.0f} GB/s",
        "serial": "each kernel at its own bound"
        if chip.platform == "gpu"
        else f"the compiler's cycles at {chip.clock / 1e9:.2f} GHz",
        "launch": f"{report['kernels']} kernels, {chips_lib.LAUNCH * 1e6:.0f} us each",
    }
    rows = [
        (key, round(rates[key]), text) for key, text in what.items() if key in rates
    ]
    terminal.print_table(
        "images/s a device, upper bounds", ("bound", "images/s", "assumed"), rows
    )
    shape = "one host" if chip.platform == "gpu" else f"a torus of {chip.axes} axes"
    logger.info(
        "published peaks of dense products and published bandwidth; collectives at "
        f"{chip.interconnect / 1e9:.0f} GB/s a device, {chips_lib.HOP * 1e6:.0f} us a "
        f"hop, on {shape}; estimates only, nothing ran on such a device"
    )


def _peaks(report: dict[str, Any], chip: chips_lib.Chip) -> str:
    parts = report["flops_by_precision"].items()
    return ", ".join(
        f"{count / 1e9:.1f} GFLOP in {precision} at "
        f"{chip.peaks[precision] / 1e12:.0f} TFLOP/s"
        for precision, count in parts
    )


def _show_problems(report: dict[str, Any]) -> None:
    for entry in report["problems"]:
        traffic = entry["traffic"] / report["images_per_call"] / 1e6
        logger.warning(
            f"warning: {entry['problem']}; kernels: {entry['kernels']}, MB an image: "
            f"{traffic:.1f}, most in {', '.join(entry['where'])}"
        )
