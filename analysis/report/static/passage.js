// A text whose tokens are coloured by their experts, with a slider over the updates.

function unpack(text, wide) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return wide ? new Uint16Array(bytes.buffer) : bytes;
}

// The text as a drawing, for saving. words: [{text, expert, colour, moved, breaks}].
function passageDrawing(heading, key, where, words) {
  const c = colours(), size = 14, mono = getComputedStyle(document.documentElement).getPropertyValue("--mono"),
        width = 1000;
  const svg = s("svg", {width}), wide = (() => {
    const probe = h("canvas").getContext("2d");
    probe.font = `${size}px ${mono}`;
    return probe.measureText("x").width;
  })();
  svg.append(s("text", {x: 0, y: 12, "font-size": 12.5, fill: c.soft}, where));
  let x = 0, y = 44;
  for (const word of words) {
    const room = wide * [...word.text].length, small = word.expert === null ? 0 : 6 * String(word.expert).length + 2;
    if (x > 0 && x + room + small > width) {
      x = 0;
      y += 28;
    }
    svg.append(s("rect", {
      x,
      y: y - 15,
      width: room + small,
      height: 20,
      rx: 3,
      fill: word.colour || "none",
      "fill-opacity": 0.3,
      stroke: word.moved ? c.ink : null
    }),
      s("rect", {x, y: y + 3, width: room + small, height: 2, fill: word.colour || "none"}),
      s("text", {x, y, "font-size": size, "font-family": mono, fill: c.ink, "xml:space": "preserve"}, word.text),
      word.expert === null ? null
                           : s("text", {x: x + room + 1, y: y + 2, "font-size": 9, "font-weight": 600, fill: c.soft},
                               String(word.expert)));
    x += room + small;
    if (word.breaks) {
      x = 0;
      y += 28;
    }
  }
  return {
    svg: fill(svg, {height: y + 16}),
    width,
    height: y + 16,
    heading: () => heading,
    file: () => fileName("stablemoe", key)
  };
}

const CHOICES = {
  expert: "used in training",
  learned: "learned router",
  distilled: "distilled router"
};

// run: of the data. Returns a card.
function makePassage(run) {
  const {passage} = run, {steps} = passage, none = passage.wide ? 65535 : 255;
  let part = 0, choice = "expert", at = steps.length - 1, timer = null, spans = [], values = null;
  const text = h("div", {class: "passage"});
  const slider = h("input", {type: "range", min: 0, max: steps.length - 1, value: at, "aria-label": "Update"});
  const where = h("output", {}), changes = h("span", {class: "changes"});
  const of = (q, i) => values[(q * run.n_layers + shownLayer(run)) * passage.parts[part].ids.length + i];

  const paint = () => {
    let moved = 0;
    spans.forEach((span, i) => {
      const e = of(at, i), changed = at > 0 && of(at - 1, i) !== e;
      moved += changed;
      const colour = e === none ? null : expertColour(e, run.n_experts);
      span.style.setProperty("--expert", colour || "transparent");
      span.dataset.expert = e === none ? "" : e;
      span.classList.toggle("moved", changed);
    });
    where.textContent =
      `update ${whole.format(steps[at])}${run.switch ? (steps[at] >= run.switch ? " · stage 2" : " · stage 1") : ""}`;
    changes.textContent = at > 0 ? `${count(moved, "token")} of ${whole.format(spans.length)} changed since update ${
                                     whole.format(steps[at - 1])}`
                                 : "the first probe";
    slider.value = at;
    slider.setAttribute("aria-valuetext", where.textContent);
  };
  const load = () => {
    const {ids, text: pieces, choices: stored} = passage.parts[part];
    if (!stored[choice]) choice = "expert";
    values = stored[choice] ? unpack(stored[choice], passage.wide)
                            : new Uint8Array(steps.length * run.n_layers * ids.length).fill(none);
    spans = pieces.map((piece, i) => {
      const span = h("span", {class: "token"}, piece.replace(/\n/g, "↵"));
      span.addEventListener("pointerenter", () => tell(i, piece, ids[i]));
      return span;
    });
    text.replaceChildren(...spans.flatMap((span, i) => (pieces[i].includes("\n") ? [span, h("br")] : [span])));
    paint();
  };
  const about = h("div", {class: "about"}, "Point at a word to see its experts over the updates.");
  const tell = (i, piece, id) => {
    const run_ = [];
    for (let q = 0; q < steps.length; q++) {
      const e = of(q, i), last = run_[run_.length - 1];
      if (last && last.e === e)
        last.end = q;
      else
        run_.push({e, first: q, end: q});
    }
    const strip = h("span", {class: "strip", "aria-hidden": "true"}, run_.map((r) => h("i", {
      style:
        `flex:${r.end - r.first + 1};background:${r.e === none ? "transparent" : expertColour(r.e, run.n_experts)}`,
      title: `expert ${r.e} from update ${steps[r.first]}`
    })));
    const now = of(at, i), final = run_[run_.length - 1];
    about.replaceChildren(h("b", {}, "“", tokenLabel(piece), "”"),
      ` id ${id} · ${now === none ? "no expert" : `expert ${now}`} now · `,
      run_.length === 1
        ? "never changed"
        : `${count(run_.length - 1, "change")}, the last at update ${whole.format(steps[final.first])}`,
      strip);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play");
  };
  const play = button("▶", "Go through the updates", () => {
    if (timer) return stop();
    if (at === steps.length - 1) at = -1;
    play.textContent = "⏸";
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(() => {
      if (at >= steps.length - 1 || !text.isConnected) return stop();
      at++;
      paint();
    }, 160);
  }, {class: "play", "aria-label": "Play"});
  slider.addEventListener("input", () => {
    stop();
    at = Number(slider.value);
    paint();
  });

  const stored = Object.keys(passage.parts[0].choices), controls = [];
  if (stored.length > 1)
    controls.push(choices("Router", stored.map((key) => [key, CHOICES[key]]), choice, (key) => {
      choice = key;
      load();
    }));
  if (passage.parts.length > 1)
    controls.push(choices("Text", passage.parts.map((_, i) => [i, String(i + 1)]), 0, (i) => {
      part = i;
      load();
    }));
  const legend = h("div", {class: "legend"}, Array.from({length: Math.min(run.n_experts, 64)}, (_, e) => {
    const item = button(String(e), `Show the words of expert ${e} alone`, () => {
      const on = item.getAttribute("aria-pressed") !== "true";
      legend.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b === item && on));
      text.classList.toggle("only", on);
      style.textContent = on ? `.passage.only .token[data-expert="${e}"]{opacity:1}` : "";
    }, {style: `--expert:${expertColour(e, run.n_experts)}`, "aria-pressed": "false"});
    return item;
  }));
  const style = h("style", {});
  const csv = () => saveCSV(fileName("stablemoe", keyOf(run, "passage")), [
    ["text", "place", "token", "id", "layer", "update", "expert"],
    ...passage.parts[part].ids.flatMap((id, i) => steps.map((step, q) => {
      const e = of(q, i);
      return [part + 1, i, passage.parts[part].text[i], id, shownLayer(run), step, e === none ? "" : e];
    }))
  ]);
  const heading = () => whose(run, "A text by its experts");
  const drawing = () => passageDrawing(heading(), keyOf(run, "passage"), `${where.textContent}, ${CHOICES[choice]}`,
    passage.parts[part].text.map((piece, i) => {
      const e = of(at, i);
      return {
        text: piece.replace(/\n/g, "↵"),
        expert: e === none ? null : e,
        colour: e === none ? null : expertColour(e, run.n_experts),
        moved: at > 0 && of(at - 1, i) !== e,
        breaks: piece.includes("\n")
      };
    }));
  load();
  return h("figure", {class: "card"},
    h("header", {}, h("h3", {}, heading()),
      h("div", {class: "tools"}, button("SVG", "Save the text as it is shown as SVG", () => saveSVG(drawing())),
        button("PNG", "Save the text as it is shown as PNG", () => savePNG(drawing())),
        button("CSV", "Save the numbers as CSV", csv))),
    controls.length ? h("div", {class: "controls"}, controls) : null,
    h("div", {class: "player"}, play, slider, where), changes, legend, style, text, about,
    h("figcaption", {},
      "Validation text of the probe. Small figures are the experts; a frame marks a token whose expert changed since the probe before; ↵ is the end of a line."));
}
