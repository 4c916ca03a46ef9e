// Heat maps, matrices, flows, bars.

// A picture of one pixel per cell, which the drawing stretches. cells: [rows][columns]; paint(value): [r, g, b].
function cellImage(cells, paint) {
  const rows = cells.length, columns = cells[0].length;
  const canvas = h("canvas", {width: columns, height: rows}), context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows), none = rgb(colours().none);
  for (let r = 0; r < rows; r++) {
    for (let k = 0; k < columns; k++) {
      const value = cells[r][k];
      image.data.set([...(known(value) ? paint(value) : none), 255], (r * columns + k) * 4);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

// A bar of colours with its numbers; at: [[share of the length, text]].
function colourScale(figure, x, y, width, paint, at, label) {
  const c = colours(), n = 48, group = s("g", {});
  for (let i = 0; i < n; i++)
    group.append(
      s("rect", {x: x + (i * width) / n, y, width: width / n + 0.6, height: 10, fill: css(paint((i + 0.5) / n))}));
  at.forEach(([share, text], i) => group.append(s("text", {
    x: x + share * width,
    y: y + 24,
    "font-size": 11,
    fill: c.soft,
    "text-anchor": i === 0  ? "start"
      : i === at.length - 1 ? "end"
                            : "middle"
  },
               text)));
  group.append(s("text", {x: x + width + 10, y: y + 9.5, "font-size": 11.5, fill: c.soft}, label));
  figure.svg.append(group);
}

function expertLabels(figure, n, area, horizontal) {
  const c = colours(), size = (horizontal ? area.width : area.height) / n,
        every = Math.ceil((horizontal ? 26 : 14) / size);
  for (let e = 0; e < n; e += every) {
    const at = (e + 0.5) * size;
    figure.svg.append(s("text", {
      x: horizontal ? area.left + at : area.left - 8,
      y: horizontal ? area.top + area.height + 15 : area.top + at + 4,
      "text-anchor": horizontal ? "middle" : "end",
      "font-size": 11,
      fill: c.soft
    },
      String(e)));
  }
}

// Load of every expert over updates. get(): {edges, rows, highest, mark}.
function loadMap(options) {
  return makeFigure({
    ...options,
    draw(figure) {
      const {edges, rows, highest, mark} = options.get(), c = colours(), n = rows.length;
      const large = figure.card.classList.contains("large");
      const height = large ? Math.max(240, innerHeight - 280) : Math.max(150, Math.min(460, n * 22));
      const area = {left: 46, top: 48, width: figure.width - 58, height};
      const all = [edges[0], edges[edges.length - 1]], domain = figure.zoom || all;
      const place = (v) => area.left + ((v - domain[0]) / (domain[1] - domain[0])) * area.width;
      colourScale(figure, area.left, 6, Math.min(300, area.width * 0.5),
        (t) => loadColour(t < 0.5 ? t * 2 : 1 + (t - 0.5) * 2 * (highest - 1), highest),
        [[0, "none"], [0.25, "0.5"], [0.5, "1: even"], [1, `${num(highest, 2)} or more`]], LABELS.heat);
      figure.svg.append(
        s("clipPath", {id: "loads"}, s("rect", {x: area.left, y: area.top, width: area.width, height})),
        s("g", {"clip-path": "url(#loads)"}, s("image", {
          x: place(all[0]),
          y: area.top,
          width: place(all[1]) - place(all[0]),
          height,
          preserveAspectRatio: "none",
          style: "image-rendering:pixelated",
          href: cellImage(rows, (v) => loadColour(v, highest))
        })));
      expertLabels(figure, n, area, false);
      if (mark) {
        const px = place(mark.x);
        if (px > area.left && px < area.left + area.width)
          figure.svg.append(s(
            "line", {x1: px, x2: px, y1: area.top, y2: area.top + height, stroke: c.ink, "stroke-dasharray": "5 4"}));
      }
      for (const at of niceTicks(domain[0], domain[1], Math.max(3, area.width / 95))) {
        figure.svg.append(s("text",
          {x: place(at), y: area.top + height + 18, "text-anchor": "middle", "font-size": 11.5, fill: c.soft},
          num(at, 6)));
      }
      figure.svg.append(s("text", {
        x: area.left + area.width / 2,
        y: area.top + height + 37,
        "text-anchor": "middle",
        "font-size": 12,
        fill: c.soft
      },
                          "update"),
        s("text", {
          transform: `translate(12 ${area.top + height / 2}) rotate(-90)`,
          "text-anchor": "middle",
          "font-size": 12,
          fill: c.soft
        },
          "expert"));
      zoomable(figure, area, domain, all, (px, py, value) => {
        if (px === null) return;
        const k = Math.max(0, Math.min(edges.length - 2, atLeast(edges, value) - 1)),
              e = Math.max(0, Math.min(n - 1, Math.floor(((py - area.top) / height) * n)));
        const load = rows[e][k];
        showTip(figure, px, py, [
          h("b", {}, `Expert ${e}`),
          edges[k + 1] - edges[k] <= 1.01
            ? `update ${num(Math.ceil(edges[k]), 6)}`
            : `updates ${num(Math.ceil(edges[k]), 6)} to ${num(Math.floor(edges[k + 1]), 6)}`,
          `${num(load, 3)} times the mean load`,
          known(load) ? `${percent((100 * load) / n)} of the ${ROWS}` : `no ${ROW}`
        ]);
      });
      return area.top + height + 44;
    },
    csv() {
      const {edges, rows} = options.get();
      return [
        ["from update", "to update", ...rows.map((_, e) => `expert ${e}`)],
        ...rows[0].map((_, k) => [edges[k], edges[k + 1], ...rows.map((row) => row[k])])
      ];
    },
  });
}

// Tokens between the experts of consecutive MoE layers. get(): [counts [E][E], ...], one per pair of layers.
function flowFigure(options) {
  return makeFigure({
    ...options,
    draw: (figure) => {
      const parts = options.get();
      return state.flow === "ribbons" ? drawRibbons(figure, parts) : drawMatrices(figure, parts);
    },
    csv() {
      const rows = [["from layer", "to layer", "from expert", "to expert", ROWS]];
      options.get().forEach(
        (part, m) => part.forEach((row, a) => row.forEach((n, b) => rows.push([m, m + 1, a, b, n]))));
      return rows;
    },
  });
}

function drawRibbons(figure, parts) {
  const c = colours(), n = parts[0].length, columns = parts.length + 1,
        total = parts.flat(2).reduce((a, b) => a + b, 0) / parts.length;
  const large = figure.card.classList.contains("large");
  const height = large ? Math.max(300, innerHeight - 240) : Math.max(340, Math.min(680, n * 34)), top = 30,
        gap = Math.min(10, (height * 0.25) / n);
  const bar = 16, left = 30, step = (figure.width - 60 - bar) / (columns - 1),
        scale = (height - gap * (n - 1)) / total;
  const sums = [];
  for (let m = 0; m < columns; m++) {
    sums.push(Array.from({length: n},
      (_, e) => (
        m < parts.length ? parts[m][e].reduce((a, b) => a + b, 0) : parts[m - 1].reduce((a, row) => a + row[e], 0))));
  }
  const tops = sums.map((column) => {
    let y = top;
    return column.map((value) => {
      const at = y;
      y += value * scale + gap;
      return at;
    });
  });
  const ribbons = s("g", {});
  figure.svg.append(ribbons);
  const least = total * 0.001;
  parts.forEach((part, m) => {
    const out = [...tops[m]], into = [...tops[m + 1]];
    for (let a = 0; a < n; a++) {
      for (let b = 0; b < n; b++) {
        const size = part[a][b] * scale, y0 = out[a], y1 = into[b];
        out[a] += size;
        into[b] += size;
        if (part[a][b] < least) continue;
        const x0 = left + m * step + bar, x1 = left + (m + 1) * step, middle = (x0 + x1) / 2;
        const ribbon = s("path", {
          class: "ribbon",
          "data-ends": `${m}:${a} ${m + 1}:${b}`,
          fill: expertColour(a, n),
          "fill-opacity": 0.38,
          d: `M${x0} ${y0.toFixed(1)}C${middle} ${y0.toFixed(1)} ${middle} ${y1.toFixed(1)} ${x1} ${y1.toFixed(1)}V${
            (y1 + size).toFixed(1)}C${middle} ${(y1 + size).toFixed(1)} ${middle} ${(y0 + size).toFixed(1)} ${x0} ${
            (y0 + size).toFixed(1)}Z`
        });
        const say = (event) => {
          const box = figure.svg.getBoundingClientRect();
          ribbon.setAttribute("fill-opacity", 0.75);
          showTip(figure, event.clientX - box.left, event.clientY - box.top, [
            h("b", {}, `Expert ${a} → expert ${b}`), `MoE layer ${m} → ${m + 1}`, count(part[a][b], ROW, ROWS),
            `${percent((100 * part[a][b]) / sums[m][a])} of those of expert ${a}`
          ]);
        };
        ribbon.addEventListener("pointermove", say);
        ribbon.addEventListener("pointerleave", () => {
          ribbon.setAttribute("fill-opacity", 0.38);
          figure.tip.hidden = true;
        });
        ribbons.append(ribbon);
      }
    }
  });
  sums.forEach((column, m) => {
    const x = left + m * step;
    figure.svg.append(s("text", {
      x: m === 0            ? x
        : m === columns - 1 ? x + bar
                            : x + bar / 2,
      y: 14,
      "font-size": 12,
      "font-weight": 600,
      fill: c.ink,
      "text-anchor": m === 0 ? "start"
        : m === columns - 1  ? "end"
                             : "middle"
    },
      `MoE layer ${m}`));
    column.forEach((value, e) => {
      const node = s(
        "rect", {x, y: tops[m][e], width: bar, height: Math.max(1, value * scale), rx: 2, fill: expertColour(e, n)});
      const light = (on) => ribbons.childNodes.forEach((r) => r.setAttribute("fill-opacity",
                                                         !on ? 0.38
                                                           : r.dataset.ends.split(" ").includes(`${m}:${e}`) ? 0.75
                                                                                                             : 0.06));
      node.addEventListener("pointerenter", () => light(true));
      node.addEventListener("pointerleave", () => light(false));
      figure.svg.append(node);
      if (value * scale > 9)
        figure.svg.append(s("text", {
          x: m === columns - 1 ? x + bar + 7 : x - 7,
          y: tops[m][e] + (value * scale) / 2 + 4,
          "text-anchor": m === columns - 1 ? "start" : "end",
          "font-size": 11.5,
          fill: c.soft
        },
          String(e)));
    });
  });
  return top + height + 14;
}

function drawMatrices(figure, parts) {
  const c = colours(), n = parts[0].length,
        across = Math.max(1, Math.min(parts.length, Math.floor(figure.width / 380)));
  const cell = figure.width / across, size = Math.min(cell - 90, 460);
  const paint = (t) => along(c.ramp, t);
  colourScale(figure, 46, 6, 200, paint, [[0, "0 %"], [1, "100 %"]], `of an expert's ${ROWS} go there`);
  parts.forEach((part, m) => {
    const left = 46 + (m % across) * cell, top = 74 + Math.floor(m / across) * (size + 84);
    const shares = part.map((row) => {
      const sum = row.reduce((a, b) => a + b, 0);
      return row.map((v) => (sum ? v / sum : null));
    });
    const area = {left, top, width: size, height: size};
    figure.svg.append(s("image", {
      x: left,
      y: top,
      width: size,
      height: size,
      preserveAspectRatio: "none",
      style: "image-rendering:pixelated",
      href: cellImage(shares, (t) => paint(Math.sqrt(t)))
    }),
      s("text", {x: left, y: top - 9, "font-size": 12, "font-weight": 600, fill: c.ink},
        `MoE layer ${m} (rows) → ${m + 1} (columns)`));
    expertLabels(figure, n, area, false);
    expertLabels(figure, n, area, true);
    const sheet = s("rect", {class: "live", x: left, y: top, width: size, height: size, fill: "transparent"});
    sheet.addEventListener("pointermove", (event) => {
      const box = figure.svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      const a = Math.max(0, Math.min(n - 1, Math.floor(((y - top) / size) * n))),
            b = Math.max(0, Math.min(n - 1, Math.floor(((x - left) / size) * n)));
      showTip(figure, x, y, [
        h("b", {}, `Expert ${a} → expert ${b}`), count(part[a][b], ROW, ROWS),
        `${percent(100 * shares[a][b])} of those of expert ${a}`
      ]);
    });
    sheet.addEventListener("pointerleave", () => {
      figure.tip.hidden = true;
    });
    figure.svg.append(sheet);
  });
  return 74 + Math.ceil(parts.length / across) * (size + 84) - 30;
}

// Stacked bars, one per run. get(): {bars: [{name, parts: [{name, value, colour}]}]}; format(value).
function stackedBars(options) {
  return makeFigure({
    ...options,
    draw(figure) {
      const {bars} = options.get(), c = colours(), off = figure.hidden;
      const parts = new Map();
      bars.forEach((bar) => bar.parts.forEach((part) => parts.set(part.name, part.colour)));
      const narrow = figure.width < 520,
            left = Math.min(narrow ? 90 : 170, Math.max(...bars.map((b) => measure(b.name, 12))) + 14);
      const top =
        drawLegend(figure, [...parts].map(([label, colour]) => ({label, colour, symbol: "box", match: () => true})),
          4, figure.width - 8) +
        6;
      const sum = (bar) => bar.parts.reduce((a, part) => a + (off.has(part.name) ? 0 : part.value), 0);
      const highest = Math.max(1e-12, ...bars.map(sum)), width = figure.width - left - 90;
      bars.forEach((bar, i) => {
        const y = top + i * 36;
        let x = left;
        const name = bar.name.length > 24 ? `…${bar.name.slice(-22)}` : bar.name;
        figure.svg.append(
          s("text", {x: left - 10, y: y + 17, "text-anchor": "end", "font-size": 12, fill: c.ink}, name));
        for (const part of bar.parts) {
          if (off.has(part.name) || !(part.value > 0)) continue;
          const size = (part.value / highest) * width;
          const piece = s("rect", {x, y, width: Math.max(0.5, size - 1), height: 24, rx: 2, fill: part.colour});
          const box = () => figure.svg.getBoundingClientRect();
          piece.addEventListener(
            "pointermove", (event) => showTip(figure, event.clientX - box().left, event.clientY - box().top, [
              h("b", {}, `${bar.name}: ${part.name}`), options.format(part.value),
              `${percent((100 * part.value) / sum(bar))} of what is shown`
            ]));
          piece.addEventListener("pointerleave", () => {
            figure.tip.hidden = true;
          });
          figure.svg.append(piece);
          x += size;
        }
        figure.svg.append(s("text", {x: x + 8, y: y + 17, "font-size": 12, fill: c.soft}, options.format(sum(bar))));
      });
      return top + bars.length * 36;
    },
    csv: () => [["run", "part", "value"],
      ...options.get().bars.flatMap((bar) => bar.parts.map((part) => [bar.name, part.name, part.value]))],
  });
}

// Upright bars. get(): {edges [n + 1], values [n], colour, label, format}.
function histogram(options) {
  return makeFigure({
    ...options,
    draw(figure) {
      const {edges, values, colour, label} = options.get(), total = values.reduce((a, b) => a + b, 0) || 1;
      const area = {left: 62, top: 12, width: figure.width - 78, height: 220}, highest = Math.max(...values) / total;
      const x = {
        domain: [edges[0], edges[edges.length - 1]],
        label,
        format: (v) => num(v),
        place: (v) => area.left + ((v - edges[0]) / (edges[edges.length - 1] - edges[0])) * area.width
      };
      const y = {
        domain: [0, 100 * highest * 1.06 || 1],
        label: ROWS,
        format: (v) => `${num(v, 3)} %`,
        place: (v) => area.top + (1 - v / (100 * highest * 1.06 || 1)) * area.height
      };
      drawAxes(figure, area, x, y);
      values.forEach((value, i) => {
        const at = y.place((100 * value) / total);
        const piece = s("rect", {
          x: x.place(edges[i]) + 0.5,
          width: Math.max(1, x.place(edges[i + 1]) - x.place(edges[i]) - 1),
          y: at,
          height: area.top + area.height - at,
          fill: colour
        });
        piece.addEventListener("pointerenter", () => showTip(figure, x.place(edges[i]), at, [
          h("b", {}, `${num(edges[i])} to ${num(edges[i + 1])}`), count(value, ROW, ROWS),
          percent((100 * value) / total, 2)
        ]));
        piece.addEventListener("pointerleave", () => {
          figure.tip.hidden = true;
        });
        figure.svg.append(piece);
      });
      return area.top + area.height + 46;
    },
    csv: () => {
      const {edges, values} = options.get();
      return [["from", "to", ROWS], ...values.map((v, i) => [edges[i], edges[i + 1], v])];
    },
  });
}
