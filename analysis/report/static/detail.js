// The sections about one run and one of its MoE layers.

function loadDetail() {
  return section("map", LABELS.loads, null, detail((run, layer) => {
    if (!layer || !layer.heat) return nothing(lacking(run, "no routing log with loads (log.load_every)"));
    return loadMap({
      title: whose(run, LABELS.loads), key: keyOf(run, "loads"),
        get: () => ({
          ...layer.heat, mark: run.switch ? { x: run.switch_at.update } : null
        }),
             note: `One row per expert; colour is its load over the mean load.${
               run.switch ? " Dashed: stage 2 begins." : ""} Drag over the figure to look closer.`
    }).card;
  }));
}

function routersDetail() {
  if (!RUNS.some((run) => run.layers.some((layer) => layer.agreement))) return null;
  return section("routers", ["Learned and distilled router", "Two routers"],
    "In stage 1 a small router on token ids learns to choose what the learned router chooses. Stage 2 goes on with the small one alone.",
    detail((run) => {
      const some = run.layers.some((layer) => layer.agreement);
      if (!some) return nothing(lacking(run, "no distilled router"));
      const lines = () => run.layers.flatMap((layer, m) => (!layer.agreement ? [] : [
        layer.agreement.train && {
          name: `MoE layer ${m}, training tokens`,
          colour: lineColour(m),
          layer: m,
          ...pct(smoothed(layer.agreement.train, LOOK.smoothing[0])),
          faint: pct(layer.agreement.train)
        },
        layer.agreement.probe && {
          name: `MoE layer ${m}, probe`,
          colour: lineColour(m),
          dash: "2 3",
          points: layer.agreement.probe.x.length < 60,
          width: 1.4,
          layer: m,
          probe: true,
          ...pct(layer.agreement.probe)
        }
      ].filter(Boolean)));
      return lineChart({
        title: `Agreement over stage 1${SEVERAL ? ` · ${run.name}` : ""}`,
        key: keyOf(run, "agreement"),
        x: UPDATES,
        y: {label: LABELS.agreement, domain: [0, 100], format: (v) => `${num(v, 3)} %`, tip: (v) => percent(v)},
        lines,
        legend:
          () => [...run.layers.map(
                   (_, m) => ({label: `MoE layer ${m}`, colour: lineColour(m), match: (line) => line.layer === m})),
            ...(lines().some((l) => l.probe) ? [{
              label: "validation tokens of the probe",
              colour: colours().soft,
              dash: "2 3",
              match: (line) => line.probe
            }]
                                             : [])],
        note:
          "Share of tokens for which both choose the same expert: of the update's own tokens, and of the same validation tokens every time."
      }).card;
    }));
}
const pct = (line) => ({...line, y: line.y.map((v) => 100 * v)});

// Why a run has nothing to show.
const lacking = (run, what) => (run.n_experts === 1 ? `${run.name} has one expert only: nothing is routed.`
    : run.n_layers ? `${run.name} has ${what}.`
                   : `${run.name} has no MoE layer.`);

function counted(run) {
  const c = run.counted;
  if (!c) return "";
  return c.source === "probe"
    ? `Counted over the ${whole.format(c.tokens)} probe tokens at update ${
        whole.format(c.last)}; log.tokens_every gives more.`
    : `Counted over ${whole.format(c.tokens)} assignments of training ${ROWS} at ${count(c.records, "update")} from ${
        whole.format(c.first)} to ${whole.format(c.last)}.`;
}

function specialDetail() {
  if (IMAGES) return placesDetail();
  const lead =
    "The tokens that are most characteristic of each expert: by their share among the expert's tokens over their share among all tokens (lift). The deeper the colour, the larger the share of the token's occurrences that go to this expert.";
  return section("experts", ["What experts specialise in", "Specialisation"], lead, detail((run, layer) => {
    if (!layer || !layer.special)
      return nothing(lacking(run, "neither records of tokens (log.tokens_every) nor probes (log.probe_every)"));
    if (run.images) return placesParts(run, layer);
    const n = layer.special.length, space = h("div", {});
    const redraw = () =>
      space.replaceChildren(state.view === "cards" ? specialCards(layer, n) : specialTable(run, layer));
    redraw();
    return [
      h("div", {class: "bar"},
        choices("Shown as", [["cards", "cards"], ["table", "table"]], state.view,
          (v) => {
            state.view = v;
            redraw();
          })),
      space, h("p", {class: "small"}, counted(run)), languageTable(run, layer), informationFigure(run, layer)
    ];
  }));
}

// Of a translation model: where the tokens of each language go.
function languageTable(run, layer) {
  if (!layer.languages || !layer.languages.length) return null;
  const n = layer.languages[0].share.length;
  const rows = layer.languages.map((one) => Object.assign({language: one.language, tokens: one.tokens},
                                     ...one.share.map((v, e) => ({[`e${e}`]: v}))));
  return makeTable({
    key: keyOf(run, "languages"),
    title: whose(run, "Experts by language"),
    rows,
    columns: [
      {key: "language", label: "Language"}, {key: "tokens", label: "Tokens", number: true},
      ...Array.from(
        {length: n}, (_, e) => ({key: `e${e}`, label: `Expert ${e}`, number: true, show: (v) => percent(v)}))
    ],
    note: `Share of each language's ${layer.side || ""} tokens that go to each expert, over the last probe.`
  });
}

function specialCards(layer, n) {
  const card = (expert, e) => {
    const colour = expertColour(e, n);
    return h("div", {class: "expert", style: `--expert:${colour}`},
      h("header", {}, h("b", {}, `Expert ${e}`),
        h("span", {},
          known(expert.share) ? `${percent(100 * expert.share)} of tokens · ${count(expert.ids, "id")}` : "",
          known(expert.gate) ? ` · gate ${num(expert.gate, 2)}` : "")),
      expert.top.length ? h("div", {class: "words"},
                            expert.top.map(
                              ([text, id, times, lift, share]) => h("span", {
                                class: "word",
                                style: `--strength:${Math.round(10 + 45 * (share || 0) ** 2)}%`,
                                title: `id ${id}: ${whole.format(times)} times here, ${
                                  percent(100 * share, 0)} of its occurrences, lift ${num(lift, 3)}`
                              },
                                tokenLabel(text))))
                        : h("p", {class: "small"}, "no token"));
  };
  const cards = h("div", {class: "experts"}, layer.special.slice(0, 32).map(card));
  if (n <= 32) return cards;
  const more = button(`Show all ${n} experts`, null, () => {
    cards.append(...layer.special.slice(32).map((expert, i) => card(expert, i + 32)));
    more.remove();
  }, {class: "more"});
  return h("div", {}, cards, more);
}

function specialTable(run, layer) {
  const rows = layer.special.flatMap(
    (expert, e) => expert.top.map(
      ([text, id, times, lift, share], i) => ({expert: e, rank: i + 1, text, id, times, lift, share: 100 * share})));
  return makeTable({
    key: keyOf(run, "specialisation"),
    title: whose(run, "Characteristic tokens"),
    rows,
    columns: [
      {key: "expert", label: "Expert", number: true, show: (v) => String(v)},
      {key: "rank", label: "Rank", number: true},
      {key: "text", label: "Token", show: (v) => h("code", {}, tokenLabel(v))},
      {key: "id", label: "Id", number: true, show: (v) => String(v)}, {key: "times", label: "Times", number: true},
      {key: "lift", label: "Lift", number: true, show: (v) => num(v, 3)},
      {key: "share", label: "Of its occurrences", number: true, show: (v) => percent(v, 0)}
    ]
  });
}

function informationFigure(run, layer) {
  const info = layer.information, end = layer.information_end;
  const say = end && known(end.share)
    ? `Over the tokens counted above, the token id tells ${num(end.mutual, 3)} of the ${
        num(end.expert, 3)} bits of the expert (${percent(end.share)}).`
    : "";
  if (!info) return say ? h("p", {class: "small"}, say) : null;
  return lineChart({
    title: whose(run, "What the token id tells of the expert"), key: keyOf(run, "information"), x: UPDATES,
      height: 230,
      y:
        {label: "of the expert's entropy", domain: [0, 100], format: (v) => `${num(v, 3)} %`, tip: (v) => percent(v)},
      lines:
        () => [{name: "mutual information", colour: lineColour(0), x: info.x, y: info.y, points: info.x.length < 60},
          {name: "by chance", colour: colours().soft, dash: "2 4", x: info.x, y: info.chance, chance: true}],
        legend: () =>
          [{label: "mutual information of token id and expert", colour: lineColour(0), match: (line) => !line.chance},
            {label: "by chance", colour: colours().soft, dash: "2 4", match: (line) => line.chance}],
        marks: () => (run.switch ? [{ x: run.switch_at.update, label: "stage 2" }] : []),
        note: `Over ${
          whole.format(
            info
              .tokens)} validation tokens of the probe: 100 % means that the token id alone decides. So few tokens seem to tell something even where experts are dealt at random (dotted). ${
          say}`
  }).card;
}

function passageDetail() {
  if (IMAGES) return picturesDetail();
  return section("passage", "A text and its experts", null,
    detail((run) => (run.images ? nothing(`${run.name} is a model of images.`)
                         : run.passage ? makePassage(run)
                                       : nothing(lacking(run, "no probes (log.probe_every, log.probe_sequences)")))));
}

function flowDetail() {
  if (!RUNS.some((run) => run.flow.some(Boolean))) return null;
  return section("flow", "From layer to layer", `Which experts of the next MoE layer the ${ROWS} of an expert go to.`,
    detail((run) => {
      const parts = run.flow.filter(Boolean);
      if (!parts.length) return nothing(lacking(run, "one MoE layer only, or no records"));
      const n = run.n_experts;
      if (n > 32) state.flow = "matrix";
      const figure = flowFigure({
        title: `Flow of ${ROWS} between MoE layers${SEVERAL ? ` · ${run.name}` : ""}`,
        key: keyOf(run, "flow"),
        get: () => parts.map((part) => part.counts),
        controls: [choices("Shown as", [["ribbons", "ribbons"], ["matrix", "matrices"]], state.flow,
          (v) => {
            state.flow = v;
            figure.draw();
          })],
        note: `${counted(run)} Of a ${ROW} with several experts the first one. The expert in a layer tells ${
          parts.map((part, m) => `${percent(part.information)} of the expert's entropy in layer ${m + 1}`)
            .join(", ")}. Ribbons below a thousandth of the ${ROWS} are not drawn.`
      });
      return figure.card;
    }));
}

function gateDetail() {
  if (!RUNS.some((run) => run.layers.some((layer) => layer.gates))) return null;
  return section("gate-detail", "Gates", null, detail((run, layer) => {
    if (!layer || !layer.gates) return nothing(lacking(run, `no records of ${ROWS} (log.tokens_every)`));
    const n = layer.gates.bins.length, rows = layer.gates.mean.map((gate, e) => ({
      expert: e,
      gate,
      share: layer.special ? 100 * layer.special[e].share : null,
      ids: layer.special ? layer.special[e].ids : null
    }));
    return [
      histogram({
        title: whose(run, "Distribution of gates"),
        key: keyOf(run, "gates"),
        get: () => ({
          edges: Array.from({length: n + 1}, (_, i) => i / n),
          values: layer.gates.bins,
          colour: lineColour(0),
          label: "gate"
        }),
        note: counted(run)
      }).card,
      makeTable({
        key: keyOf(run, "gates by expert"),
        title: whose(run, "By expert"),
        rows,
        columns: [
          {key: "expert", label: "Expert", number: true, show: (v) => String(v)},
          {key: "gate", label: "Mean gate", number: true, show: (v) => num(v, 4)},
          {key: "share", label: "Of all assignments", number: true, show: (v) => percent(v)},
          {key: "ids", label: IMAGES ? "Distinct places" : "Distinct token ids", number: true, show: (v) => (known(v) ? whole.format(v) : "–")}
        ]
      })
    ];
  }));
}
