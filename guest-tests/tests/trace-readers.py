"""Reads exported traces back with other programs' own code: `trace-readers.py perfetto|parquet|report|browser FILE ROWS.jsonl`.

Perfetto's published schema is the one that its package `perfetto` ships, compiled; Parquet is read by DuckDB. The figures must be those
of `msr-vmm trace show --json`, which is ROWS.jsonl. For `browser`, FILE is the report's document as a browser has it once its script
has run.
"""

import json
import sys
from collections import Counter
from html.parser import HTMLParser


def perfetto(path, rows):
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as schema

    trace = schema.Trace()
    with open(path, "rb") as file:
        trace.ParseFromString(file.read())
    tracks, names, strings, keys = {}, {}, {}, {}
    seen = []
    for packet in trace.packet:
        if packet.HasField("track_descriptor") and packet.track_descriptor.HasField("thread"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor.thread.thread_name
        names.update((entry.iid, entry.name) for entry in packet.interned_data.event_names)
        keys.update((entry.iid, entry.name) for entry in packet.interned_data.debug_annotation_names)
        strings.update((entry.iid, entry.str.decode()) for entry in packet.interned_data.debug_annotation_string_values)
        event = packet.track_event
        if packet.HasField("track_event") and event.type == schema.TrackEvent.TYPE_INSTANT:
            arguments = {keys[a.name_iid]: a for a in event.debug_annotations}
            caller = arguments.get("caller")
            seen.append((
                packet.timestamp,
                tracks[event.track_uuid],
                names[event.name_iid],
                arguments["value"].pointer_value if "value" in arguments else None,
                strings[caller.string_value_iid] if caller else None,
                strings[arguments["answered by"].string_value_iid],
            ))
    first = seen[0][0] - rows[0]["time_ns"]
    wanted = [(
        first + row["time_ns"],
        f"vCPU {row['vcpu']}",
        ("WRMSR " if row["kind"] == "write" else "RDMSR ") + (row["name"] or hex(row["msr"])),
        int(row["value"], 16) if row["value"] else None,
        row["caller"],
        row["answerer"],
    ) for row in rows]
    assert seen == wanted, next((pair for pair in zip(seen, wanted) if pair[0] != pair[1]), (len(seen), len(wanted)))


def parquet(path, rows):
    import duckdb

    def ask(query):
        return duckdb.sql(query.replace("TRACE", f"'{path}'")).fetchall()

    assert ask("select count(*) from TRACE") == [(len(rows),)]
    wanted = Counter((row["msr"], row["kind"], row["answerer"]) for row in rows)
    counted = ask("select msr, kind, answerer, count(*) from TRACE group by all")
    assert {tuple(line[:3]): line[3] for line in counted} == dict(wanted), counted
    values = ask("select value, rip, caller, name, fields, reason, fault, time_ns from TRACE order by time_ns, vcpu")
    number = lambda text: int(text, 16) if text else None
    ours = [(number(r["value"]), number(r["rip"]), r["caller"], r["name"], r["fields"], r["reason"], r["fault"], r["time_ns"]) for r in
            sorted(rows, key=lambda r: (r["time_ns"], r["vcpu"]))]
    assert values == ours, next((pair for pair in zip(values, ours) if pair[0] != pair[1]), None)


def report(path, rows):
    with open(path, encoding="utf-8") as file:
        page = file.read()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["records"] == len(rows)
    assert data["faults"] == sum(row["fault"] for row in rows)
    reads = Counter(row["msr"] for row in rows if row["kind"] == "read")
    writes = Counter(row["msr"] for row in rows if row["kind"] == "write")
    assert {m["index"]: (m["reads"], m["writes"]) for m in data["msrs"]} == {
        msr: (reads[msr], writes[msr]) for msr in set(reads) | set(writes)}
    assert sum(sum(c["counts"]) for c in data["timeline"]) == len(rows)
    callers = Counter((row["caller"] or "").split("+")[0] for row in rows if row["caller"] and "+" in row["caller"])
    for caller in data["callers"]:
        if caller["name"] in callers:
            assert caller["reads"] + caller["writes"] == callers[caller["name"]], caller
    assert len(page) < 2 << 20, len(page)


class Shown(HTMLParser):
    """The texts of a document's definition list, of its tables by their id, and how many canvases it has."""

    def __init__(self):
        super().__init__()
        self.figures, self.tables, self.canvases = {}, {}, 0
        self.table = self.term = self.cell = None

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.table = self.tables.setdefault(dict(attributes).get("id"), [])
        elif tag == "tr" and self.table is not None:
            self.table.append([])
        elif tag in ("dt", "dd", "th", "td"):
            self.cell = ""
        elif tag == "canvas":
            self.canvases += 1

    def handle_data(self, text):
        if self.cell is not None:
            self.cell += text

    def handle_endtag(self, tag):
        if tag == "dt":
            self.term = self.cell
        elif tag == "dd":
            self.figures[self.term] = self.cell
        elif tag in ("th", "td") and self.table:
            self.table[-1].append(self.cell)
        elif tag == "table":
            self.table = None
        if tag in ("dt", "dd", "th", "td"):
            self.cell = None


def browser(path, rows):
    shown = Shown()
    with open(path, encoding="utf-8") as file:
        shown.feed(file.read())
    figures = shown.figures
    assert figures["records"] == f"{len(rows):,}", figures
    assert figures["faults"] == f"{sum(row['fault'] for row in rows):,}", figures
    assert figures["MSRs"] == f"{len({row['msr'] for row in rows})}", figures
    for answerer, count in Counter(row["answerer"] for row in rows).items():
        assert figures["by " + answerer] == f"{count:,}", figures
    wanted = {}
    for row in rows:
        name = hex(row["msr"]) + (" " + row["name"] if row["name"] else "")
        counts = wanted.setdefault(name, [0, 0, 0])
        counts[row["kind"] == "write"] += 1
        counts[2] += row["fault"]
    seen = {line[0]: [int(cell.replace(",", "")) for cell in line[1:4]] for line in shown.tables["msrs"][1:]}
    assert seen == wanted, (seen, wanted)
    # The timeline, the heat map, and a plot of each of the two sensors.
    assert shown.canvases >= 4, shown.canvases


def main():
    what, path, listed = sys.argv[1:4]
    with open(listed, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert rows
    {"perfetto": perfetto, "parquet": parquet, "report": report, "browser": browser}[what](path, rows)
    print(f"{what}: {len(rows)} rows, equal")


main()
