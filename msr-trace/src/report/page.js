"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const el = (tag, text, parent) => {
    const e = document.createElement(tag);
    if (text !== undefined) e.textContent = text;
    if (parent) parent.append(e);
    return e;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (n) => n.toLocaleString("en");
  const seconds = (ns) => (ns / 1e9).toFixed(3) + " s";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  // Okabe and Ito's colours, which people with any colour vision tell apart.
  const colours = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#8c6bb1", "#999999", "#666666"];

  $("about").textContent = [data.program, data.host, data.kernel].filter(Boolean).join(" · ");
  for (const [name, value] of [
    ["records", number(data.records)], ["lost", number(data.lost)], ["faults", number(data.faults)],
    ["MSRs", number(data.msrs.length)], ["vCPUs", number(data.vcpus)], ["span", seconds(data.span)], ["recording", data.ending],
    ...data.answerers.map(([who, count]) => ["by " + who, number(count)]),
  ]) {
    const box = el("div", undefined, $("figures"));
    el("dt", name, box);
    el("dd", value, box);
  }

  let plots = [];
  const width = () => document.querySelector("main").clientWidth;
  const axes = (unit) => [
    { stroke: css("--soft"), grid: { stroke: css("--line") }, values: (u, v) => v.map((s) => s + " s") },
    { stroke: css("--soft"), grid: { stroke: css("--line") }, size: 70, label: unit },
  ];
  const times = data.timeline.length ? data.timeline[0].counts.map((_, i) => (i * data.bin) / 1e9) : [];

  function timeline() {
    const place = document.querySelector("#timeline .plot");
    place.textContent = "";
    const stacked = [];
    data.timeline.forEach((c, n) => stacked.push(c.counts.map((v, i) => v + (n ? stacked[n - 1][i] : 0))));
    // The tallest first, so that each lower one covers it.
    const order = data.timeline.map((_, n) => n).reverse();
    const series = [{}].concat(order.map((n) => ({
      stroke: colours[n % colours.length], fill: colours[n % colours.length], width: 0,
      points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }),
    })));
    plots.push(new uPlot({
      width: width(), height: 300, scales: { x: { time: false } }, axes: axes("accesses"), series,
      legend: { show: false }, hooks: { setCursor: [(u) => legend(u.cursor.idx)] },
    }, [times, ...order.map((n) => stacked[n])], place));
    legend();
  }
  const key = document.querySelector("#timeline .legend"), when = el("li", undefined, key);
  const counts = data.timeline.map((c, n) => {
    const item = el("li", undefined, key);
    el("i", undefined, item).style.background = colours[n % colours.length];
    item.append(c.name + " ");
    return el("span", undefined, item);
  });
  // The counts of the part under the pointer, or else of the whole recording.
  function legend(at) {
    when.textContent = at == null ? "in all:" : `from ${seconds(at * data.bin)}:`;
    data.timeline.forEach((c, n) => {
      counts[n].textContent = number(at == null ? c.counts.reduce((a, b) => a + b, 0) : c.counts[at]);
    });
  }

  const heat = $("heat"), label = 220, row = 16;
  const canvas = el("canvas", undefined, heat);
  let chosen = null;
  function drawHeat() {
    const bins = times.length, w = width(), scale = devicePixelRatio || 1, h = data.heat.length * row;
    canvas.width = w * scale;
    canvas.height = h * scale;
    canvas.style.height = h + "px";
    const c = canvas.getContext("2d");
    c.scale(scale, scale);
    c.font = "12px ui-monospace, monospace";
    c.textBaseline = "middle";
    const most = Math.log1p(Math.max(1, ...data.heat.map((r) => Math.max(...r.counts))));
    const cell = (w - label) / Math.max(1, bins);
    data.heat.forEach((r, y) => {
      c.fillStyle = css("--fg");
      c.fillText(r.name.slice(0, 30), 0, y * row + row / 2);
      r.counts.forEach((v, x) => {
        if (!v) return;
        c.fillStyle = `rgba(${css("--heat")},${0.15 + 0.85 * Math.log1p(v) / most})`;
        c.fillRect(label + x * cell, y * row + 1, Math.max(1, cell), row - 2);
      });
    });
    if (chosen) {
      c.strokeStyle = css("--focus");
      c.strokeRect(label + chosen.x * cell, chosen.y * row + 0.5, Math.max(2, cell), row - 1);
    }
  }
  function choose(x, y) {
    const bins = times.length;
    if (!data.heat.length || !bins) return;
    chosen = { x: Math.max(0, Math.min(bins - 1, x)), y: Math.max(0, Math.min(data.heat.length - 1, y)) };
    const r = data.heat[chosen.y];
    $("cell").textContent = `${r.name} from ${seconds(chosen.x * data.bin)}: ${number(r.counts[chosen.x])} accesses`;
    drawHeat();
  }
  heat.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (!step) return;
    e.preventDefault();
    choose((chosen ? chosen.x : 0) + step[0], (chosen ? chosen.y : 0) + step[1]);
  });
  canvas.addEventListener("click", (e) => {
    const box = canvas.getBoundingClientRect();
    choose(Math.floor((e.clientX - box.left - label) / ((box.width - label) / times.length)), Math.floor((e.clientY - box.top) / row));
  });

  function table(place, heads, rows) {
    const head = el("tr", undefined, el("thead", undefined, place));
    heads.forEach((text) => { el("th", text, head).scope = "col"; });
    const body = el("tbody", undefined, place);
    for (const cells of rows) {
      const line = el("tr", undefined, body);
      cells.forEach((c) => el("td", typeof c === "number" ? number(c) : c, line));
    }
  }
  const hex = (n) => "0x" + n.toString(16);
  const msrRows = (list) => list.map((m) => [hex(m.index) + (m.name ? " " + m.name : ""), m.reads, m.writes, m.faults, m.peak]);
  const msrHeads = ["MSR", "reads", "writes", "faults", "most in a second"];
  table($("msrs"), msrHeads, msrRows(data.msrs));
  table($("callers"), ["function", "reads", "writes", "faults"], data.callers.map((c) => [c.name, c.reads, c.writes, c.faults]));
  if (data.faulted.length) table(el("table", undefined, $("faults")), msrHeads, msrRows(data.faulted));
  else el("p", "None: every access got a value.", $("faults"));

  function sensors() {
    $("sensors").textContent = "";
    if (!data.sensors.length) el("p", "No energy counter, temperature or frequency was read.", $("sensors"));
    for (const s of data.sensors) {
      plots.push(new uPlot({ title: s.title, width: width(), height: 200, scales: { x: { time: false } }, axes: axes(s.unit),
        series: [{ label: "time", value: (u, v) => (v == null ? "" : v.toFixed(3) + " s") }, { label: s.unit, stroke: colours[0], width: 2 }] },
        [s.points.map((p) => p[0]), s.points.map((p) => p[1])], $("sensors")));
    }
  }
  if (data.profile) { const p = el("pre", data.profile, $("profile")); p.tabIndex = 0; }
  else el("p", "None was learnt: the trace does not hold what KVM answers, or records of it were lost.", $("profile"));

  function draw() {
    plots.forEach((p) => p.destroy());
    plots = [];
    if (data.timeline.length) timeline();
    sensors();
    drawHeat();
  }
  draw();
  dark.addEventListener("change", draw);
  addEventListener("resize", draw);
})();
