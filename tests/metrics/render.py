"""Draws the panels of packaging/grafana/nodewall.json from a Prometheus, to look at them without Grafana.

render.py http://127.0.0.1:9090 OUT.png [MINUTES [INSTANCE]]
"""
import datetime
import json
import pathlib
import sys
import time
import urllib.parse
import urllib.request

import matplotlib
import matplotlib.dates
matplotlib.use("Agg")
import matplotlib.pyplot as plt

PALETTE = plt.get_cmap("tab10").colors
DASHBOARD = pathlib.Path(__file__).parents[2] / "packaging/grafana/nodewall.json"


def main():
    server, out = sys.argv[1:3]
    minutes = float(sys.argv[3]) if len(sys.argv) > 3 else 5
    instance = sys.argv[4] if len(sys.argv) > 4 else ".*"
    end = time.time()
    start = end - 60 * minutes
    panels = json.loads(DASHBOARD.read_text())["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    inch = 0.42
    figure = plt.figure(figsize=(24 * inch * 1.9, height * inch), facecolor="#f4f5f5")
    for panel in panels:
        at = panel["gridPos"]
        left, bottom = at["x"] / 24, 1 - (at["y"] + at["h"]) / height
        width, tall = at["w"] / 24, at["h"] / height
        if panel["type"] == "row":
            figure.text(left + 0.004, bottom + tall / 2, panel["title"], weight="bold", size=11, va="center")
            continue
        pad = 0.35 / height
        box = figure.add_axes([left + 0.003, bottom + pad / 2, width - 0.006, tall - pad])
        box.set(xticks=[], yticks=[], facecolor="white")
        box.set_title(panel["title"], size=8.5, loc="left", y=1, pad=-11, x=0.01, weight="bold")
        ask = lambda query, path: get(server, path, query, start, end, instance)
        draw(figure, box, panel, ask)
    figure.savefig(out, dpi=100)


def get(server, path, query, start, end, instance):
    span = f"{int(end - start)}s"
    query = query.replace("$__rate_interval", "20s").replace("$__range", span).replace("$instance", instance)
    arguments = {"query": query, "time": end}
    if path == "query_range":
        arguments |= {"start": start, "end": end, "step": max(1, (end - start) / 240)}
    with urllib.request.urlopen(f"{server}/api/v1/{path}?{urllib.parse.urlencode(arguments)}") as answer:
        return json.load(answer)["data"]["result"]


def draw(figure, box, panel, ask):
    kind = panel["type"]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    path = "query_range" if kind in ("timeseries", "state-timeline") else "query"
    series = []
    for target in panel["targets"]:
        for result in ask(target["expr"], path):
            series.append((legend(target.get("legendFormat", ""), result["metric"]), result))
    if not series:
        words = panel["fieldConfig"]["defaults"].get("noValue", "no data")
        return box.text(0.5, 0.45, words, ha="center", color="#888", transform=box.transAxes)
    if kind == "stat":
        return stat(box, panel, series, unit)
    if kind == "table":
        return table(box, series)
    where = box.get_position()
    inner = figure.add_axes([where.x0 + 0.035, where.y0 + where.height * 0.27, where.width - 0.045, where.height * 0.55])
    inner.tick_params(labelsize=7)
    for side in ("top", "right"):
        inner.spines[side].set_visible(False)
    if kind == "bargauge":
        values = [float(result["value"][1]) for _, result in series]
        inner.set_position([where.x0 + where.width * 0.45, where.y0 + where.height * 0.15, where.width * 0.45, where.height * 0.65])
        inner.barh([name for name, _ in series], values, color="#e8953b")
        for place, value in enumerate(values):
            inner.text(value, place, f" {shown(value, unit)}", va="center", size=8)
        return None
    names = sorted({name for name, _ in series})
    if kind == "state-timeline":
        for name, result in series:
            times = [time_of(point) for point in result["values"]]
            inner.scatter(times, [names.index(name)] * len(times), marker="s", s=36, color=PALETTE[names.index(name) % 10])
        inner.set_yticks(range(len(names)), names)
        inner.set_ylim(-0.6, len(names) - 0.4)
        inner.set_position([where.x0 + where.width * 0.18, where.y0 + where.height * 0.2, where.width * 0.8, where.height * 0.6])
        return clock(inner)
    stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
    floor = {}
    for place, (name, result) in enumerate(series):
        points = [(time_of(point), float(point[1])) for point in result["values"] if point[1] != "NaN"]
        colour = PALETTE[place % 10]
        low = [floor.get(moment, 0.0) if stacked else 0.0 for moment, _ in points]
        high = [under + value for under, (_, value) in zip(low, points)]
        times = [moment for moment, _ in points]
        inner.plot(times, high, lw=1, color=colour, label=name)
        inner.fill_between(times, low, high, color=colour, alpha=0.3 if stacked else 0.08)
        floor |= dict(zip(times, high))
    inner.set_ylim(bottom=0)
    inner.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    clock(inner)
    inner.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncol=3, fontsize=6.5, frameon=False)
    return None


def stat(box, panel, series, unit):
    colour = "#222"
    values = [float(result["value"][1]) for _, result in series]
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    reached = [step["color"] for step in steps if step["value"] is None or values[0] >= step["value"]]
    if reached:
        box.set_facecolor({"green": "#73bf69", "red": "#f2495c", "orange": "#ff9830"}[reached[-1]])
        colour = "white"
    texts = [shown(value, unit) for value in values]
    if panel["options"]["textMode"] == "value_and_name":
        texts = [f"{name}: {text}" for (name, _), text in zip(series, texts)]
    size = 20 if len(texts) == 1 else 12
    box.text(0.5, 0.42, "\n".join(texts), ha="center", va="center", size=size, color=colour, transform=box.transAxes)


def table(box, series):
    columns = sorted({key for _, result in series for key in result["metric"]}) + ["value"]
    series.sort(key=lambda entry: -float(entry[1]["value"][1]))
    rows = [[result["metric"].get(key, "") for key in columns[:-1]] + [shown(float(result["value"][1]), "none")] for _, result in series]
    drawn = box.table(cellText=rows[:10], colLabels=columns, loc="center", cellLoc="left", bbox=[0.01, 0.02, 0.98, 0.84])
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7.5)


def legend(form, metric):
    for key, value in metric.items():
        form = form.replace("{{" + key + "}}", value)
    return form


def time_of(point):
    return matplotlib.dates.date2num(datetime.datetime.fromtimestamp(float(point[0])))


def clock(axes):
    axes.xaxis_date()
    axes.xaxis.set_major_locator(matplotlib.dates.AutoDateLocator(maxticks=4))
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M:%S"))


def shown(value, unit):
    if unit == "s":
        for size, word in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {word}"
        return "0 s"
    if unit in ("bytes", "Bps"):
        for size, word in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")):
            if abs(value) >= size:
                return f"{value / size:.3g} {word}" + ("/s" if unit == "Bps" else "")
        return "0 B"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    return f"{value:.3g}" + {"pps": " p/s", "reqps": " /s", "cps": " /s"}.get(unit, "")


main()
