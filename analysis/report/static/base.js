// What everything else uses: elements, numbers as text, colours of the two themes. Colours of data, and words that
// other figures have too, come with the data (analysis/look.py).

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const LOOK = DATA.look, LABELS = LOOK.labels;
const SEVERAL = RUNS.length > 1;

// What is routed and what is counted: patches of images, else tokens.
const IMAGES = RUNS.every((run) => run.images);
const ROW = IMAGES ? "patch" : "token", ROWS = IMAGES ? "patches" : "tokens";
const ITEM = IMAGES ? "image" : "token", LOSS = IMAGES ? "nats per image" : LABELS.loss;

// What the reader has chosen; parts that depend on it draw themselves again.
const state = {
  run: 0,
  layer: 0,
  unit: "loss",
  smooth: LOOK.smoothing[0],
  balance: "max_over_mean",
  view: "cards",
  flow: "ribbons"
};

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children = []) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on"))
      element.addEventListener(name.slice(2), value);
    else
      element.setAttribute(name, value === true ? "" : value);  // words such as aria-pressed="false" come as texts
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}
const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const s = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// ---- numbers as text ----

const whole = new Intl.NumberFormat("en-US", {maximumFractionDigits: 0});
const compact = new Intl.NumberFormat("en-US", {notation: "compact", maximumSignificantDigits: 3});
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

// A number with so many significant digits, without an exponent where that is readable.
function num(value, digits = 4) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(Math.max(0, digits - 2));
  if (Number.isInteger(value) && size >= 1000) return whole.format(value);
  if (size >= 10 ** digits) return whole.format(value);
  return String(parseFloat(value.toPrecision(digits)));
}
const fixed = (value, places) => (known(value) ? value.toFixed(places) : "–");
const percent = (value, places = 1) => (known(value) ? `${value.toFixed(places)} %` : "–");
const count = (n, one, more) => `${whole.format(n)} ${n === 1 ? one : more || one + "s"}`;

function seconds(value) {
  if (!known(value)) return "–";
  if (value >= 1) return `${num(value, 3)} s`;
  return value >= 1e-3 ? `${num(value * 1e3, 3)} ms` : `${num(value * 1e6, 3)} µs`;
}

// ---- colours ----

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

// Of what is no data.
const THEMES = {
  light: {
    ground: "#ffffff",
    ink: "#171a20",
    soft: "#5a6372",
    line: "#e4e7ec",
    strong: "#aab2bf",
    accent: "#0b62b0",
    none: "#eceef1",
    ramp: [[247, 249, 252], [178, 205, 231], [74, 139, 194], [8, 69, 124], [3, 33, 67]],
  },
  dark: {
    ground: "#171b21",
    ink: "#e9ecf1",
    soft: "#9aa4b4",
    line: "#2b323c",
    strong: "#5c6776",
    accent: "#78b9ff",
    none: "#22272f",
    ramp: [[26, 31, 38], [27, 62, 98], [38, 110, 166], [101, 172, 226], [214, 236, 255]],
  },
};
const darkMode = matchMedia("(prefers-color-scheme: dark)");
for (const [name, theme] of Object.entries(THEMES)) {
  const [low, middle, high] = LOOK.load[name].map((colour) => rgb(colour));
  Object.assign(theme, {runs: LOOK.lines[name], eighth: LOOK.eighth[name], low, middle, high});
}
const colours = () => THEMES[darkMode.matches ? "dark" : "light"];

const DASHES = ["", "7 4", "2 3", "9 3 2 3", "1 4", "12 4"];
// A dash for each MoE layer; runs beyond the colours there are begin with another one.
const dashOf = (i, m = 0, layers = 1) =>
  DASHES[(m + layers * Math.floor(RUNS[i].group / colours().runs.length)) % DASHES.length];
const lineColour = (k) => colours().runs[k % colours().runs.length];
// Runs that differ in their seed alone have one colour.
const runColour = (i) => lineColour(RUNS[i].group);

// Phases of an update, and those that a later program may have.
const phaseColour = (name, i) => LOOK.phases[name] || expertColour(i, 24);

// Few experts have the colours above; many go round the circle of hues by the golden angle, in three lightnesses.
// Their numbers always stand beside the colour.
function expertColour(e, n) {
  if (n <= colours().runs.length) return colours().runs[e % colours().runs.length];
  if (n === 8) return [...colours().runs, colours().eighth][e];
  const light = (darkMode.matches ? [66, 76, 58] : [42, 54, 34])[e % 3];
  return hslHex((e * 137.508) % 360, 62, light);
}

// Programs that open a saved figure know #rrggbb.
function hslHex(hue, saturation, lightness) {
  const l = lightness / 100, a = (saturation / 100) * Math.min(l, 1 - l);
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (l - a * Math.max(-1, Math.min(k - 3, 9 - k, 1)))).toString(16).padStart(2, "0");
  };
  return `#${channel(0)}${channel(8)}${channel(4)}`;
}
const mix = (a, b, t) => a.map((value, i) => Math.round(value + (b[i] - value) * t));
const css = (colour) => `rgb(${colour.join(",")})`;

// 0 to 1 -> colour, along a list of colours.
function along(stops, t) {
  const at = Math.max(0, Math.min(1, t)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(at));
  return mix(stops[i], stops[i + 1], at - i);
}
// Load over mean load -> colour: 1 is the middle, 0 one end, `highest` the other.
function loadColour(value, highest) {
  const c = colours();
  return value <= 1 ? mix(c.low, c.middle, Math.sqrt(Math.max(0, value)))
                    : mix(c.middle, c.high, Math.min(1, (value - 1) / (highest - 1)) ** 0.75);
}

// ---- texts of tokens ----

// A token as it can be seen: its spaces and line ends have signs.
function tokenLabel(text) {
  const parts = [];
  for (const piece of text.split(/([ \n\t\r]+)/)) {
    if (!piece) continue;
    if (/^[ \n\t\r]/.test(piece)) {
      const signs = piece.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "→").replace(/\r/g, "←");
      parts.push(h("span", {class: "blank"}, signs));
    } else
      parts.push(piece);
  }
  return parts;
}

// Width of a text in a figure.
const measure = (() => {
  const context = document.createElement("canvas").getContext("2d");
  return (text, size = 12, weight = 400) => {
    context.font = `${weight} ${size}px ${FONT}`;
    return context.measureText(text).width;
  };
})();
const FONT = getComputedStyle(document.documentElement).getPropertyValue("--font").trim() || "sans-serif";
