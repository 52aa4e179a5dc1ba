"""Reads exported traces back with other programs' own code: `trace-readers.py perfetto|parquet|report FILE ROWS.jsonl [SCREENSHOT]`.

Perfetto's published schema is the one that its package `perfetto` ships, compiled; Parquet is read by DuckDB. The figures must be those
of `msr-vmm trace show --json`, which is ROWS.jsonl.
"""

import json
import sys
from collections import Counter


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


def main():
    what, path, listed = sys.argv[1:4]
    with open(listed, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert rows
    {"perfetto": perfetto, "parquet": parquet, "report": report}[what](path, rows)
    print(f"{what}: {len(rows)} rows, equal")


main()
