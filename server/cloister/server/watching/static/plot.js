// Line plots as inline SVG: no library, no style attribute, every text set as text. A table of the same figures lies behind each.
const NS = "http://www.w3.org/2000/svg";
const W = 560, H = 250, LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 34;

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(name, attributes = {}, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function steps(low, high, about) {
  const raw = (high - low) / about || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= raw) ?? 10 * power;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

/** A tick needs no zeros at its end. */
const short = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");

/** One bar of `value` on a scale to `most`, with a mark at `cap`. */
export function bar(label, value, most, cap) {
  const made = svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": label });
  made.append(svg("rect", { class: "track", x: 0, y: 0, width: 100, height: 10 }), svg("rect", { class: "value", x: 0, y: 0, width: Math.min(100, (100 * value) / most), height: 10 }));
  if (Number.isFinite(cap)) made.append(svg("rect", { class: "cap", x: Math.min(99, (100 * cap) / most - 0.5), y: 0, width: 1, height: 10 }));
  return made;
}

/** options: title, label, series [{name, points, kind: "line"|"dash"|"thin"}], levels [{name, value}], band {low, high}, format, zero, unit */
export function plot(options) {
  const series = options.series.filter((one) => one.points.length);
  if (!series.length && !options.band) return null;
  const levels = (options.levels ?? []).filter((one) => Number.isFinite(one.value));
  const all = [...series.flatMap((one) => one.points), ...(options.band ? [...options.band.low, ...options.band.high] : [])];
  const xs = all.map((point) => point[0]), ys = [...all.map((point) => point[1]), ...levels.map((one) => one.value)];
  let x0 = Math.min(...xs), x1 = Math.max(...xs, options.until ?? 0), y0 = Math.min(...ys), y1 = Math.max(...ys);
  if (x1 === x0) { x0 -= 1; x1 += 1; }
  if (options.zero) y0 = Math.min(0, y0);
  const pad = (y1 - y0 || Math.abs(y1) * 0.1 || 1) * 0.07;
  y1 += pad;
  if (!(options.zero && y0 >= 0)) y0 -= pad;
  const X = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT), Y = (y) => H - BOTTOM - ((y - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  const newest = series.map((one) => `${one.name}: ${options.format(one.points.at(-1)[1])} in round ${one.points.at(-1)[0]}`).join("; ");
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${options.title}, by round. ${newest}`, tabindex: "0", focusable: "true" });
  for (const at of steps(y0, y1, 4)) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: Y(at), y2: Y(at) }));
    picture.append(svg("text", { class: "tick", x: LEFT - 7, y: Y(at) + 4, "text-anchor": "end" }, short(options.format(at))));
  }
  for (const at of steps(x0, x1, 7).filter((one) => Number.isInteger(one) && one >= 0)) {
    picture.append(svg("text", { class: "tick", x: X(at), y: H - BOTTOM + 17, "text-anchor": "middle" }, String(at)));
  }
  picture.append(svg("text", { class: "tick", x: (LEFT + W - RIGHT) / 2, y: H - 3, "text-anchor": "middle" }, "round"));
  picture.append(svg("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM }));
  if (options.band) {
    const there = options.band.high.map(([x, y]) => `${X(x)},${Y(y)}`), back = [...options.band.low].reverse().map(([x, y]) => `${X(x)},${Y(y)}`);
    picture.append(svg("polygon", { class: "band", points: [...there, ...back].join(" ") }));
  }
  levels.forEach((one, index) => picture.append(svg("line", { class: `level l${index}`, x1: LEFT, x2: W - RIGHT, y1: Y(one.value), y2: Y(one.value) })));
  series.forEach((one, index) => {
    const kind = `${one.kind ?? "line"} s${one.color ?? index}`;
    if (one.points.length > 1) picture.append(svg("polyline", { class: kind, points: one.points.map(([x, y]) => `${X(x)},${Y(y)}`).join(" ") }));
    if (one.points.length === 1 || (one.points.length <= 24 && one.kind !== "dash" && one.kind !== "thin"))
      for (const [x, y] of one.points) picture.append(svg("circle", { class: `dot s${one.color ?? index}`, cx: X(x), cy: Y(y), r: 2.6 }));
  });
  const cursor = svg("line", { class: "cursor", x1: 0, x2: 0, y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
  picture.append(cursor);
  const key = el("ul", { class: "key" });
  const swatch = (kind, text) => {
    const box = svg("svg", { class: "swatch", viewBox: "0 0 18 8", "aria-hidden": "true" });
    box.append(kind === "band" ? svg("rect", { class: "band", x: 0, y: 0, width: 18, height: 8 }) : svg("line", { class: kind, x1: 0, x2: 18, y1: 4, y2: 4 }));
    key.append(el("li", {}, box, text));
  };
  if (options.band) swatch("band", "lowest to highest");
  series.forEach((one, index) => swatch(`${one.kind ?? "line"} s${one.color ?? index}`, one.name));
  levels.forEach((one, index) => swatch(`level l${index}`, one.name));
  const readout = el("p", { class: "readout", "aria-live": "off" });
  const rounds = [...new Set(all.map((point) => point[0]))].sort((a, b) => a - b);
  let place = -1;
  const read = () => {
    const at = rounds[place];
    cursor.setAttribute("x1", X(at)); cursor.setAttribute("x2", X(at)); cursor.setAttribute("visibility", "visible");
    const told = series.map((one) => [one.name, one.points.find((point) => point[0] === at)]).filter((pair) => pair[1]);
    readout.textContent = `round ${at}: ` + told.map(([name, point]) => `${name} ${options.format(point[1])}`).join(" · ");
  };
  const leave = () => { place = -1; cursor.setAttribute("visibility", "hidden"); readout.textContent = ""; };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect(), x = x0 + (((event.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT) * (x1 - x0);
    place = rounds.reduce((best, one, index) => (Math.abs(one - x) < Math.abs(rounds[best] - x) ? index : best), 0);
    read();
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    place = place < 0 ? rounds.length - 1 : Math.min(rounds.length - 1, Math.max(0, place + (event.key === "ArrowLeft" ? -1 : 1)));
    read();
    readout.setAttribute("aria-live", "polite");
    event.preventDefault();
  });
  return el("figure", {}, el("figcaption", {}, options.title, options.more ? el("span", {}, ` ${options.more}`) : null), key, picture, readout, behind(options, series, rounds));
}

function behind(options, series, rounds) {
  const id = `table ${options.title}`, box = el("details", { "data-keep": id }, el("summary", {}, "Table"));
  box.addEventListener("toggle", () => {
    if (!box.open || box.querySelector("table")) return;
    const head = el("tr", {}, el("th", { scope: "col" }, "round"), ...series.map((one) => el("th", { scope: "col" }, one.name)));
    const maps = series.map((one) => new Map(one.points));
    const rows = rounds.map((at) => el("tr", {}, el("th", { scope: "row" }, String(at)), ...maps.map((map) => el("td", {}, map.has(at) ? options.format(map.get(at)) : "–"))));
    box.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": options.title }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
  });
  return box;
}
