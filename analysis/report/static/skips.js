// The section on sublayers behind gates: how many rows skip them, and which.

function skipDetail() {
  if (!RUNS.some((run) => run.skips)) return null;
  const lead =
    "Rows that skip a sublayer behind a gate (model.skip): over the training, by how frequent the token is, by its place in the sequence, and the token ids that skip most and least.";
  return section("skips", ["Skipped sublayers", "Skipped"], lead, detail((run) => {
    if (!run.skips) return nothing(`${run.name} has no gates, or no log of them.`);
    const {gates, counted} = run.skips;
    return [skipShares(run, gates), ...(counted ? skipTokens(run, gates) : [
      nothing("Neither records of tokens (log.tokens_every) nor probes (log.probe_every): which rows skip is not known.")
    ])];
  }));
}

const gateLegend = (gates) =>
  gates.map((gate, g) => ({label: gate.name, colour: lineColour(g), match: (line) => line.gate === g}));
const SKIPPED = {label: "rows that skip", domain: [0, 100], format: (v) => `${num(v, 3)} %`, tip: (v) => percent(v)};

function skipShares(run, gates) {
  const lines = () => gates.map((gate, g) => gate.share && {name: gate.name, colour: lineColour(g), gate: g, ...gate.share})
                        .filter(Boolean);
  if (!lines().length) return nothing(`${run.name} has no records of shares (log.load_every).`);
  return lineChart({
    title: skipTitle(run, "Rows that skip, over the training"),
    key: keyOf(run, "skipped"),
    x: UPDATES,
    y: SKIPPED,
    height: 230,
    lines,
    legend: () => gateLegend(gates),
    note: "Share of the rows of each recorded update (log.load_every)."
  }).card;
}

const skipTitle = (run, what) => (SEVERAL ? `${what} · ${run.name}` : what);

function skipCounted(run) {
  const {counted, gates} = run.skips;
  return counted.source === "probe"
    ? `Over the ${whole.format(gates[0].tokens)} probe tokens at update ${
        whole.format(counted.last)}; log.tokens_every gives more.`
    : `Over ${whole.format(gates[0].tokens)} training tokens at ${count(counted.records, "update")} from ${
        whole.format(counted.first)} to ${whole.format(counted.last)}.`;
}

function skipTokens(run, gates) {
  const {classes, unit} = run.skips, note = skipCounted(run);
  const rows = classes.map((end, c) => Object.assign(
    {group: c ? `${classes[c - 1]} to ${end} %` : `the first ${end} %`, ids: gates[0].frequency[c].ids},
    ...gates.map((gate, g) => ({[`g${g}`]: gate.frequency[c].skipped}))));
  const column = (gate, g) => ({key: `g${g}`, label: gate.name, number: true, show: (v) => percent(v)});
  const ids = gates.flatMap((gate) => gate.ids.map(([text, id, times, share]) => ({gate: gate.name, text, id, times, share})));
  return [
    makeTable({
      key: keyOf(run, "skipped by frequency"),
      title: skipTitle(run, "Skipped, by frequency of the token"),
      rows,
      columns: [{key: "group", label: "Share of all tokens, the most frequent ids first"},
        {key: "ids", label: "Distinct ids", number: true}, ...gates.map(column)],
      note
    }),
    lineChart({
      title: skipTitle(run, "Skipped, by place in the sequence"),
      key: keyOf(run, "skipped by place"),
      x: {label: "place"},
      y: SKIPPED,
      height: 230,
      lines: () => gates.map((gate, g) => ({name: gate.name, colour: lineColour(g), gate: g, ...gate.place})),
      legend: () => gateLegend(gates),
      note
    }).card,
    ids.length ? makeTable({
      key: keyOf(run, "skipped by token"),
      title: skipTitle(run, "Tokens that skip most, and least"),
      rows: ids,
      columns: [
        {key: "gate", label: "Gate"}, {key: "text", label: "Token", show: (v) => h("code", {}, tokenLabel(v))},
        {key: "id", label: "Id", number: true, show: (v) => String(v)}, {key: "times", label: "Times", number: true},
        {key: "share", label: "Skipped", number: true, show: (v) => percent(v)}
      ],
      note: unit === "token" ? note : `${note} The gates look at means over sequences, so tokens are told apart little.`
    }) : null
  ].filter(Boolean);
}
