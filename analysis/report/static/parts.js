// What the sections are put together from.

let MAX_LAYERS = Math.max(0, ...RUNS.map((run) => run.n_layers));

// title: of the section, or [title, the same for the navigation].
const section = (id, title, lead, ...parts) => h("section", {id, "data-short": [title].flat()[1]},
  h("h2", {}, [title].flat()[0]), lead ? h("p", {class: "lead"}, lead) : null, parts);
const nothing = (reason) => h("div", {class: "card nothing"}, reason);
const thirds = (...parts) => h("div", {class: "grid thirds"}, parts);
const grid = (...parts) => h("div", {class: "grid"}, parts);

const lineName = (i, m) => [SEVERAL ? RUNS[i].name : null,
  MAX_LAYERS > 1 ? `MoE layer ${m}`
    : SEVERAL ? null
              : "this run"].filter(Boolean)
                             .join(", ");
const stageMarks = () => RUNS.map((run, i) => [run, i]).filter(([run]) => run.switch).map(([run, i]) => ({
  x: run.switch_at.update, label: SEVERAL ? null : `stage 2 from update ${whole.format(run.switch)}`,
    colour: SEVERAL ? runColour(i) : null
}));

// One line per run and MoE layer: colours tell runs and dashes layers; of a single run colours tell layers.
function layerLines(get, more) {
  const lines = [];
  RUNS.forEach((run, i) => run.layers.forEach((layer, m) => {
    const found = get(layer, run);
    if (!found || !found.x || !found.x.length) return;
    lines.push({
      name: lineName(i, m),
      colour: SEVERAL ? runColour(i) : lineColour(m),
      dash: SEVERAL ? dashOf(i, m, MAX_LAYERS) : "",
      run: i,
      layer: m,
      ...found,
      ...more
    });
  }));
  return lines;
}

function layerLegend(lines) {
  const has = (key, value) => lines.some((line) => line[key] === value);
  const layers = MAX_LAYERS > 1
    ? Array.from({length: MAX_LAYERS}, (_, m) => m).filter((m) => has("layer", m)).map((m) => ({
        label: `MoE layer ${m}`,
        colour: SEVERAL ? colours().soft : lineColour(m),
        dash: SEVERAL ? DASHES[m % DASHES.length] : "",
        match: (line) => line.layer === m
      }))
    : [];
  return [...(SEVERAL ? runLegend(lines) : []), ...layers];
}
const runLegend = (lines) =>
  RUNS.map((run, i) => [run, i])
    .filter(([run], k) => RUNS.findIndex((other) => other.group === run.group) === k)
    .filter(([run]) => lines.some((line) => RUNS[line.run] && RUNS[line.run].group === run.group))
    .map(([run, i]) => ({
      label: run.group_name,
      colour: runColour(i),
      dash: dashOf(i, 0, MAX_LAYERS || 1),
      match: (line) => RUNS[line.run] && RUNS[line.run].group === run.group
    }));

const UPDATES = {
  label: "update"
};

// A figure of one series per run and layer, or the reason why there is none.
function layerFigure(get, options) {
  if (!layerLines(get).length) return nothing(options.without);
  return lineChart({
    x: UPDATES,
    marks: stageMarks,
    ...options,
    lines: () => layerLines(get, options.more),
    legend: () => layerLegend(layerLines(get))
  }).card;
}

// Values of a key over the layers of a run: their mean; null where there is none.
function layerMean(run, get) {
  const values = run.layers.map(get).filter(known);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

// The run and layer that the parts below are about; parts registered with `detail` follow.
const details = [];
function detail(build) {
  const place = h("div", {class: "detail"});
  const draw = () => place.replaceChildren(
    ...[build(RUNS[state.run], RUNS[state.run].layers[Math.min(state.layer, RUNS[state.run].n_layers - 1)])]
      .flat()
      .filter(Boolean));
  details.push(draw);
  draw();
  return place;
}
function redrawDetails() {
  for (const draw of details) draw();
  figures.splice(0, figures.length, ...figures.filter((figure) => figure.card.isConnected));
}

function picker() {
  if (!SEVERAL && MAX_LAYERS < 2) return null;
  const bar = h("div", {class: "picker"});
  if (SEVERAL)
    bar.append(choices("Run", RUNS.map((run, i) => [i, run.name]), state.run, (i) => {
      state.run = i;
      redrawDetails();
    }));
  if (MAX_LAYERS > 1)
    bar.append(choices("MoE layer", Array.from({length: MAX_LAYERS}, (_, m) => [m, String(m)]), state.layer, (m) => {
      state.layer = m;
      redrawDetails();
    }));
  return bar;
}
const shownLayer = (run) => Math.min(state.layer, run.n_layers - 1);
const whose = (run, what) =>
  `${what}${MAX_LAYERS > 1 ? `, MoE layer ${shownLayer(run)}` : ""}${SEVERAL ? ` · ${run.name}` : ""}`;
const keyOf = (run, what) => [SEVERAL ? run.name : "", what, MAX_LAYERS > 1 ? `moe${shownLayer(run)}` : ""].join(" ");
