// Figures as words: never more digits than mean something (as cloister/server/report/words.py).
export const DASH = "–";

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e9 || size < 1e-4) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  const digits = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(Number(value.toPrecision(3)))))));
  return value.toFixed(digits);
}

export function count(value) {
  return value === null || value === undefined ? DASH : Math.round(value).toLocaleString("en");
}

export function share(value) {
  return value === null || value === undefined ? DASH : `${(100 * value).toFixed(1)}%`;
}

export function bytes(value) {
  if (value === null || value === undefined) return DASH;
  for (const [unit, size] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (value >= 0.9995 * size) return `${number(value / size)} ${unit}`;
  return `${Math.round(value)} B`;
}

export function seconds(value) {
  if (value === null || value === undefined) return DASH;
  if (value < 0.9995) return value < 0.0005 ? "0 s" : `${Math.round(1000 * value)} ms`;
  if (value < 99.95) return `${number(value)} s`;
  const whole = Math.round(value), two = (n) => String(n).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.round(whole / 86400)} days`;
}

export function ago(at, now) {
  if (at === null || at === undefined) return "never";
  const past = Math.max(0, now - at);
  return past < 2 ? "now" : past < 100 || past >= 3600 ? `${seconds(Math.round(past))} ago` : `${Math.round(past / 60)} min ago`;
}

export function day(at) {
  return at === null || at === undefined ? DASH : new Date(1000 * at).toISOString().slice(0, 16).replace("T", " ") + " UTC";
}

export function plural(amount, noun) {
  return `${count(amount)} ${noun}${amount === 1 ? "" : "s"}`;
}
