// The sections of the page, each a function that returns one.

function overview() {
  const columns = [
    {
      key: "name",
      label: "Run",
      show: (v, row) => [h("i", {class: "dot", style: `background:${runColour(row.index)}`}), v]
    },
    {key: "method", label: "Method"},
    {key: "experts", label: "Experts", number: true, show: (v) => num(v)},
    {
      key: "updates",
      label: "Updates",
      number: true,
      title: "Updates done",
      show: (v, row) => whole.format(v) + (row.planned && v < row.planned ? ` of ${whole.format(row.planned)}` : "")
    },
    {
      key: "tokens",
      label: IMAGES ? "Images" : "Tokens",
      number: true,
      title: `Training ${ITEM}s so far`,
      show: (v) => (known(v) ? compact.format(v) : "–")
    },
    {key: "stage2", label: "Stage 2 from", number: true, show: (v) => (known(v) ? whole.format(v) : "–")},
    {
      key: "train",
      label: "Training loss",
      number: true,
      best: "low",
      title: `Nats per ${ITEM}, mean of the last fiftieth of the updates`,
      show: (v) => fixed(v, 4)
    },
    {
      key: "valid",
      label: "Validation loss",
      number: true,
      best: "low",
      title: `Nats per ${ITEM}, the last evaluation`,
      show: (v) => fixed(v, 4)
    },
    {
      key: "accuracy",
      label: "Validation accuracy",
      number: true,
      best: "high",
      title: "Of the last evaluation",
      show: (v) => percent(v, 2)
    },
    {
      key: "accuracy_test",
      label: "Test accuracy",
      number: true,
      best: "high",
      title: "Over the whole test split, by stablemoe evaluate --json (test.json in the run's directory)",
      show: (v) => percent(v, 2)
    },
    {
      key: "perplexity",
      label: "Perplexity",
      number: true,
      best: "low",
      title: "Of the last evaluation",
      show: (v) => fixed(v, 2)
    },
    {
      key: "best",
      label: "Best",
      number: true,
      best: "low",
      title: "Lowest perplexity of an evaluation",
      show: (v) => fixed(v, 2)
    },
    {
      key: "test",
      label: "Test perplexity",
      number: true,
      best: "low",
      title: "Over the whole test split, by stablemoe evaluate --json (test.json in the run's directory)",
      show: (v) => fixed(v, 2)
    },
    {
      key: "late",
      label: "Change after 20 %",
      number: true,
      title: "Tokens whose last fluctuation step exceeds 20 % of the training, mean over the MoE layers",
      show: (v) => percent(v)
    },
    {
      key: "agree",
      label: "Routers agree",
      number: true,
      title:
        "Training tokens for which learned and distilled router agree at the end of stage 1, mean over the MoE layers",
      show: (v) => percent(v)
    },
    {
      key: "even",
      label: "Max / mean",
      number: true,
      title: "Load of the fullest expert over the mean load at the end, mean over the MoE layers",
      show: (v) => fixed(v, 2)
    },
    {
      key: "dead",
      label: "Dead",
      number: true,
      title: `Experts without a ${ROW} at the end, mean over the MoE layers`,
      show: (v) => num(v, 2)
    },
    {
      key: "drop",
      label: "Dropped",
      number: true,
      title: "Assignments beyond an expert's capacity at the end",
      show: (v) => percent(v, 2)
    },
    {
      key: "rate",
      label: `${IMAGES ? "Images" : "Tokens"} / s`,
      number: true,
      best: "high",
      title: "Median over the updates",
      show: (v) => (known(v) ? whole.format(v) : "–")
    },
  ];
  const rows = RUNS.map((run, index) => ({
    index, name: run.name, method: run.method, experts: run.n_experts, updates: run.updates, planned: run.planned,
      tokens: run.ends.tokens, stage2: run.switch, train: run.ends.train, valid: run.ends.valid,
      perplexity: known(run.ends.valid) && !run.images ? Math.exp(run.ends.valid) : null,
      best: known(run.ends.best) && !run.images ? Math.exp(run.ends.best) : null, test: run.ends.perplexity_test,
      accuracy: run.ends.accuracy, accuracy_test: known(run.ends.accuracy_test) ? 100 * run.ends.accuracy_test : null,
      agree: layerMean(run, (layer) => layer.agreement && layer.agreement.end),
      late: layerMean(run, (layer) => layer.fluctuation && layer.fluctuation.shares["20"]),
      even: layerMean(run, (layer) => layer.end_max_over_mean), dead: layerMean(run, (layer) => layer.end_dead),
      drop: layerMean(run, (layer) => layer.end_drop), rate: run.time && run.time.median_rate,
  }));
  // What is the same everywhere stands above the table already.
  const same = (key) => rows.every((row) => row[key] === rows[0][key]);
  const idle = (key) => (key === "method" ? rows.every((row) => row.method === row.name)
      : key === "best"
      ? rows.every((row) => row.best === row.perplexity)
      : (SEVERAL ? ["experts", "updates", "tokens"] : ["experts", "updates"]).includes(key) && same(key));
  const told =
    columns.filter(({key}) => rows.some((row) => known(row[key]) || typeof row[key] === "string") && !idle(key));
  return section("overview", "Overview", null, notices(), SEVERAL ? null : tiles(rows[0]), makeTable({
    key: "runs",
    title: SEVERAL ? "Runs" : "The run",
    columns: told,
    rows,
    note: SEVERAL ? "The best value of a column is bold. Click a heading to sort." : null
  }));
}

function notices() {
  const all = [
    ...DATA.warnings.map((text) => [null, text]),
    ...RUNS.flatMap((run) => run.notes.map((text) => [SEVERAL ? run.name : null, text]))
  ];
  if (!all.length) return null;
  return h("div", {class: "notices", role: "note"}, h("h3", {}, "To know before reading"),
    h("ul", {}, all.map(([name, text]) => h("li", {}, name ? h("b", {}, `${name}: `) : null, text))));
}

function tiles(row) {
  const tile = (label, value, more) => (value === "–"
      ? null
      : h("div", {class: "tile"}, h("span", {}, label), h("b", {}, value), more ? h("small", {}, more) : null));
  return h("div", {class: "tiles"},
    tile("Validation accuracy", percent(row.accuracy, 2), `loss ${fixed(row.valid, 4)}`),
    tile("Validation perplexity", fixed(row.perplexity, 2), `loss ${fixed(row.valid, 4)}`),
    tile("Training loss", fixed(row.train, 4), LOSS),
    tile("Change after 20 %", percent(row.late), `published BASE ${DATA.paper["20"]} %`),
    tile("Max / mean load", fixed(row.even, 2), "1 is even"),
    tile(`${IMAGES ? "Images" : "Tokens"} per second`, known(row.rate) ? whole.format(row.rate) : "–", "median"));
}

function losses() {
  if (!RUNS.some((run) => run.losses.loss || run.losses.valid))
    return section("losses", "Losses", null, nothing("No metrics were found."));
  const shown = (line) => (state.unit === "perplexity" ? {...line, y: line.y.map(Math.exp)} : line);
  const unit = () => (state.unit === "perplexity" ? "perplexity" : LOSS);
  const lines = (key, faint, more) => RUNS.flatMap((run, i) => {
    const line = run.losses[key];
    if (!line) return [];
    return [{
      name: SEVERAL ? run.name : more.name,
      colour: SEVERAL ? runColour(i) : lineColour(more.colour || 0),
      dash: SEVERAL ? dashOf(i, 0, MAX_LAYERS || 1) : "",
      run: i,
      kind: key,
      ...shown(faint ? smoothed(line, state.smooth) : line),
      faint: faint && state.smooth && RUNS.length <= 3 ? shown(line) : null,
      ...more.style
    }];
  });
  const charts = [];
  const chart = (title, get, more) => {
    const figure = lineChart({
      title,
      key: title,
      x: UPDATES,
      y: {get label() { return unit(); }},
      marks: stageMarks,
      lines: get,
      legend: () =>
        (SEVERAL ? runLegend(get()) : [...new Map(get().map((line) => [line.kind, line])).values()].map((line) => ({
          label: line.name,
          colour: line.colour,
          symbol: line.points ? "point" : null,
          match: (l) => l.kind === line.kind
        }))),
      ...more
    });
    charts.push(figure);
    return figure.card;
  };
  const levels = () => {
    const base = RUNS.map((run) => run.baselines).find(Boolean);
    const all = RUNS.every((run) => !run.baselines || Math.abs(run.baselines.unigram - base.unigram) < 1e-9);
    if (!base || !all) return [];
    return [[LABELS.unigram, base.unigram], [LABELS.bigram, base.bigram]].map(
      ([label, y]) => ({label, y: state.unit === "perplexity" ? Math.exp(y) : y}));
  };
  const train = {name: "training"}, valid = {name: "validation", colour: 1, style: {points: true, width: 1.5}};
  const redraw = () => {
    for (const figure of charts) {
      figure.zoom = null;
      figure.draw();
    }
  };
  const controls = h("div", {class: "bar"},
    IMAGES ? null : choices("Shown as", [["loss", "loss"], ["perplexity", "perplexity"]], state.unit,
      (v) => {
        state.unit = v;
        redraw();
      }),
    choices(
      "Training lines",
      [[0, "every update"], ...LOOK.smoothing.map((share) => [share, `mean of ${num(100 * share)} %`])], state.smooth,
      (v) => {
        state.smooth = v;
        redraw();
      }));
  const parts = SEVERAL
    ? [RUNS.some((run) => run.losses.valid) ? chart("Validation", () => lines("valid", false, valid), { levels }) : null, chart("Training", () => lines("loss", true, train), { levels })]
    : [chart("Training and validation", () => [...lines("loss", true, train), ...lines("valid", false, valid)], { levels, height: 340,
      note: IMAGES ? null : "Dotted: what counting tokens, or pairs of tokens, alone reaches on the validation text." })];
  const term = (key) => {
    const told = RUNS.map((run) => run.losses[key]).find(Boolean);
    if (!told) return null;
    const {title, unit} = told;
    const get = () => RUNS.flatMap((run, i) => (run.losses[key] ? [{
      name: SEVERAL ? run.name : title.toLowerCase(),
      colour: SEVERAL ? runColour(i) : lineColour(told.place),
      dash: SEVERAL ? dashOf(i, 0, MAX_LAYERS || 1) : "",
      run: i,
      kind: key,
      ...smoothed(run.losses[key], state.smooth),
      faint: state.smooth && RUNS.length <= 3 ? run.losses[key] : null
    }]
                                                                : []));
    return lineChart({
      title,
      key: title,
      x: UPDATES,
      y: {label: unit, least: 0},
      marks: stageMarks,
      lines: get,
      height: 190,
      legend: () => (SEVERAL ? runLegend(get()) : [])
    }).card;
  };
  const further = [...new Set(RUNS.flatMap((run) => Object.keys(run.losses).filter((key) => key.startsWith("term:"))))];
  const gates = [...new Set(RUNS.flatMap((run) => Object.keys(run.losses).filter((key) => key.startsWith("run:"))))];
  return section("losses", "Losses", null, controls, parts, accuracies(),
    thirds(["balance", "distill", ...further, ...gates, "valid_bleu", "grad_norm"].map(term)));
}

// Of images: the share of each update's batch, and of the validation split, that is predicted.
function accuracies() {
  const lines = (key, name, more) => RUNS.flatMap((run, i) => (run.losses[key] ? [{
    name: SEVERAL ? `${run.name}, ${name}` : name,
    colour: SEVERAL ? runColour(i) : lineColour(more.points ? 1 : 0),
    run: i,
    kind: key,
    ...(more.points ? run.losses[key] : smoothed(run.losses[key], state.smooth)),
    ...more
  }]
                                                                               : []));
  const get = () => [...(SEVERAL ? [] : lines("accuracy", "training", {})),
    ...lines("valid_accuracy", "validation", {points: true, width: 1.5})];
  if (!get().length) return null;
  return lineChart({
    title: SEVERAL ? "Accuracy on the validation split" : "Accuracy",
    key: "accuracy",
    x: UPDATES,
    y: {label: "accuracy", ceiling: 100, format: (v) => `${num(v, 3)} %`, tip: (v) => percent(v, 2)},
    marks: stageMarks,
    lines: get,
    height: 260,
    legend: () => (SEVERAL ? runLegend(get()) : get().map((line) => ({
      label: line.name,
      colour: line.colour,
      symbol: line.points ? "point" : null,
      match: (l) => l.kind === line.kind
    })))
  }).card;
}

function fluctuation() {
  if (IMAGES) return null;  // there is no probe of images
  const get = (layer) => layer.fluctuation && {...layer.fluctuation, step: true};
  const lead =
    "A token fluctuates as long as its expert differs from its expert at the end of the training. The last probe at which it does is its last fluctuation step; the curves show how many tokens have come to rest by then.";
  if (!layerLines(get).length)
    return section(
      "fluctuation", "Routing fluctuation", lead, nothing("No log with two probes or more (log.probe_every)."));
  const paper = Object.entries(DATA.paper).map(([x, y]) => [Number(x), 100 - y]);
  const base = () => ({
    name: LABELS.published,
    colour: colours().soft,
    dash: "2 4",
    points: "diamond",
    x: paper.map((p) => p[0]),
    y: paper.map((p) => p[1]),
    paper: true
  });
  const figure = lineChart({
    title: LABELS.fluctuation, key: "fluctuation", height: 360, x: {
      label: `${LABELS.training} (%)`,
      domain: [0, 100],
      tip: (v) => `after ${num(v, 3)} % of the training`,
      format: (v) => `${num(v)} %`
    },
      y: {label: "tokens at rest", domain: [0, 100], format: (v) => `${num(v, 3)} %`, tip: (v) => percent(v)},
      lines:
        () => [...layerLines(get), base()],
        legend: () => [...layerLegend(layerLines(get)), {
          label: LABELS.published,
          colour: colours().soft,
          dash: "2 4",
          symbol: "diamond",
          match: (line) => line.paper
        }],
        marks: () => RUNS.map((run, i) => [run, i]).filter(([run]) => run.switch).map(([run, i]) => ({
          x: run.switch_at.share, label: SEVERAL ? null : "stage 2",
            colour: SEVERAL ? runColour(i) : null
        })),
        note:
          "Diamonds: the figures that the StableMoE paper gives for BASE layers (Dai et al. 2022). A run in two stages jumps where stage 2 begins (dashed), by the tokens on which its two routers did not agree, and rests from there on."
  });
  const rows = RUNS.flatMap((run, i) => run.layers.flatMap((layer, m) => (layer.fluctuation ? [{
    index: i,
    name: run.name,
    method: run.method,
    layer: m,
    tokens: layer.fluctuation.tokens,
    probes: layer.fluctuation.probes,
    ...layer.fluctuation.shares
  }]
                                                                                            : [])));
  const share = (p) => ({
    key: p,
    label: `after ${p} %`,
    number: true,
    best: "low",
    title: `Tokens whose last fluctuation step exceeds ${p} % of the training`,
    show: (v) => percent(v)
  });
  return section("fluctuation", "Routing fluctuation", lead, figure.card,
    makeTable({ key: "fluctuation table", title: "Tokens that still change expert", columns: [
      { key: "name", label: "Run", show: (v, row) => (row.kind ? v : [h("i", { class: "dot", style: `background:${SEVERAL ? runColour(row.index) : lineColour(row.layer)}` }), v]) }, { key: "method", label: "Method" },
      { key: "layer", label: "MoE layer", number: true, show: (v) => (known(v) ? String(v) : "") }, ...Object.keys(DATA.paper).map(share),
      { key: "tokens", label: "Tokens", number: true, show: (v) => (known(v) ? whole.format(v) : "") }, { key: "probes", label: "Probes", number: true, show: (v) => (known(v) ? whole.format(v) : "") }],
    rows: [...rows, { kind: "paper", name: LABELS.published, method: "base", ...DATA.paper }], note: "Per cent of the probe's tokens whose last fluctuation step exceeds that share of the training." }));
}

function loads() {
  const get = (layer) =>
    layer[state.balance] && smoothed(layer[state.balance], state.balance === "dead" ? 0 : LOOK.smoothing[0]);
  const shown = () => LOOK.balance.find(({key}) => key === state.balance);
  const lead = `How evenly ${ROWS} spread over the experts, before anything is dropped.`;
  if (!RUNS.some((run) => run.layers.some((layer) => layer.max_over_mean)))
    return section("loads", "Loads", lead, nothing("Neither the routing logs nor the metrics have loads."));
  const figure = lineChart({
    title: () => shown().title.replace("a token", `a ${ROW}`),
    x: UPDATES,
    marks: stageMarks,
    y: {
      get label() { return shown().label; },
      get floor() { return shown().even; },
      get ceiling() { return state.balance === "entropy" ? 1.002 : null; }
    },
    lines: () => layerLines(get),
    legend: () => layerLegend(layerLines((layer) => layer.max_over_mean)),
    controls: [choices("Figure", LOOK.balance.map(({key, label}) => [key, label]), state.balance,
      (v) => {
        state.balance = v;
        figure.zoom = null;
        figure.draw();
      })],
    note: "Even loads have max / mean 1, variation 0, entropy 1 and no dead expert. Means over 2 % of the points."
  });
  return section("loads", "Loads", lead, figure.card);
}

function gates() {
  const drops = RUNS.some((run) => run.layers.some((layer) => layer.drop && layer.drop.y.some((v) => v > 0)));
  return section("gates", "Gates and drops",
    `The gate weighs what an expert adds to its ${ROW}. An assignment is dropped where its expert's capacity is used up.`,
    grid(
      layerFigure((layer) => layer.gate_mean && smoothed(layer.gate_mean, LOOK.smoothing[0]),
        {title: "Mean gate", key: "gate mean", y: {label: "gate"}, height: 230, without: "No gates were recorded."}),
      drops ? layerFigure((layer) => layer.drop && smoothed(layer.drop, LOOK.smoothing[0]), {
        title: "Dropped assignments",
        key: "drops",
        y: {label: "dropped", floor: 0, format: (v) => `${num(v, 3)} %`},
        height: 230,
        without: ""
      })
            : nothing(
                "No assignment was dropped in any run: the experts take what comes, or their capacity was enough.")));
}

function time() {
  const order = Object.keys(LOOK.phases);
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length - 1.5);
  const phases = [...new Set(RUNS.flatMap((run) => (run.time ? Object.keys(run.time.phases) : [])))].sort(
    (a, b) => place(a) - place(b));
  const timed = RUNS.map((run, i) => [run, i]).filter(([run]) => run.time && Object.keys(run.time.phases).length);
  const get = () => RUNS.flatMap((run, i) => (run.time && run.time.rate ? [{
    name: SEVERAL ? run.name : `${ITEM}s per second`,
    colour: runColour(i),
    dash: dashOf(i, 0, MAX_LAYERS || 1),
    run: i,
    ...smoothed(run.time.rate, LOOK.smoothing[0]),
    faint: RUNS.length <= 3 ? run.time.rate : null
  }]
                                                                        : []));
  if (!get().length && !timed.length) return section("time", "Time", null, nothing("The metrics have no times."));
  return section("time", "Time", null,
    timed.length
      ? stackedBars({
          title: "Where the time of an update goes",
          key: "phases",
          format: seconds,
          get: () => ({
            bars: timed.map(([run]) => ({
              name: run.name,
              parts: phases.filter((name) => name in run.time.phases).map((name) => ({
                name: name.replace(/_/g, " "),
                value: run.time.phases[name],
                colour: phaseColour(name, phases.indexOf(name))
              }))
            }))
          }),
          note: "Means over the updates, by the columns time_… of metrics.csv."
        }).card
      : nothing("These metrics have no columns time_…: the runs were made before phases were recorded."),
    get().length ? lineChart({
      title: `${IMAGES ? "Images" : "Tokens"} per second`,
      key: "rate",
      x: UPDATES,
      y: {label: `${ITEM}s / s`, floor: 0, format: (v) => num(v, 6)},
      lines: get,
      height: 220,
      marks: stageMarks,
      legend: () => (SEVERAL ? runLegend(get()) : [])
    }).card
                 : null);
}

function settings() {
  const keys = [...new Set(RUNS.flatMap((run) => Object.keys(run.settings)))];
  if (!keys.length) return null;
  const text = (value) => (value === undefined ? "–" : String(value));
  const differ = keys.filter((key) => new Set(RUNS.map((run) => text(run.settings[key]))).size > 1);
  const table = (title, names, key) => makeTable({
    key,
    title,
    columns: [
      {key: "key", label: "Key", show: (v) => h("code", {}, v)},
      ...RUNS.map((run, i) => ({key: String(i), label: SEVERAL ? run.name : "Value"}))
    ],
    rows: names.map(
      (name) => Object.fromEntries([["key", name], ...RUNS.map((run, i) => [String(i), text(run.settings[name])])]))
  });
  return section("settings", "Configuration", null,
    SEVERAL ? (differ.length ? table("Where the runs differ", differ, "differences")
                             : nothing("The runs have the same configuration."))
            : null,
    h("details", {}, h("summary", {}, `All ${keys.length} keys`), table("Configuration", keys, "configuration")));
}
