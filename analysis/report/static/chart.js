// Lines over updates.

function niceTicks(low, high, n) {
  const raw = (high - low) / Math.max(1, n), power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999) || power;
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step)
    ticks.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return ticks;
}

// Smallest index whose x is at least the value.
function atLeast(x, value) {
  let low = 0, high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// A line as its running mean over a share of it, where the data has that; 0: every point.
const smoothed = (line, share) => (share && line.mean && line.mean[share] ? {...line, y: line.mean[share]} : line);

// The entries of a legend, in rows; a click hides and shows. Returns the height.
function drawLegend(figure, entries, left, width) {
  const c = colours();
  let x = left, row = 0;
  for (const entry of entries) {
    const room = 30 + measure(entry.label, 12) + 16;
    if (x > left && x + room > left + width) {
      x = left;
      row++;
    }
    const off = figure.hidden.has(entry.label), y = row * 22 + 12;
    const group = s("g", {class: entry.match ? "entry" : null, opacity: off ? 0.35 : 1},
      s("rect", {x: x - 4, y: y - 11, width: room - 6, height: 22, rx: 5, fill: "transparent"}),
      entry.symbol === "box" ? s("rect", {x, y: y - 5, width: 12, height: 10, rx: 2, fill: entry.colour})
                             : s("line", {
                                 x1: x,
                                 x2: x + 22,
                                 y1: y,
                                 y2: y,
                                 stroke: entry.colour || c.soft,
                                 "stroke-width": 2.2,
                                 "stroke-dasharray": entry.dash || null
                               }),
      entry.symbol === "point" || entry.symbol === "diamond"
        ? pointSign({points: entry.symbol, colour: entry.colour}, x + 11, y)
        : null,
      s("text", {
        x: x + (entry.symbol === "box" ? 18 : 28),
        y: y + 4,
        "font-size": 12,
        fill: c.ink,
        "text-decoration": off ? "line-through" : null
      },
        entry.label));
    if (entry.match) {
      group.addEventListener("click", () => {
        if (off)
          figure.hidden.delete(entry.label);
        else
          figure.hidden.add(entry.label);
        figure.draw();
      });
    }
    figure.svg.append(group);
    x += room;
  }
  return entries.length ? row * 22 + 30 : 6;
}

function drawAxes(figure, area, x, y) {
  const c = colours(), {svg} = figure;
  for (const at of niceTicks(y.domain[0], y.domain[1], Math.max(3, area.height / 56))) {
    const py = y.place(at);
    svg.append(s("line", {x1: area.left, x2: area.left + area.width, y1: py, y2: py, stroke: c.line}),
      s("text", {x: area.left - 8, y: py + 4, "text-anchor": "end", "font-size": 11.5, fill: c.soft}, y.format(at)));
  }
  const base = area.top + area.height;
  svg.append(s("line", {x1: area.left, x2: area.left + area.width, y1: base, y2: base, stroke: c.strong}));
  for (const at of niceTicks(x.domain[0], x.domain[1], Math.max(3, area.width / 95))) {
    const px = x.place(at);
    svg.append(s("line", {x1: px, x2: px, y1: base, y2: base + 5, stroke: c.strong}),
      s("text", {x: px, y: base + 18, "text-anchor": "middle", "font-size": 11.5, fill: c.soft}, x.format(at)));
  }
  svg.append(s("text",
    {x: area.left + area.width / 2, y: base + 37, "text-anchor": "middle", "font-size": 12, fill: c.soft}, x.label));
  if (y.label)
    svg.append(s("text", {
      transform: `translate(13 ${area.top + area.height / 2}) rotate(-90)`,
      "text-anchor": "middle",
      "font-size": 12,
      fill: c.soft
    },
      y.label));
}

function linePath(line, x, y) {
  let path = "", open = false;
  for (let i = 0; i < line.x.length; i++) {
    if (!known(line.y[i])) {
      open = false;
      continue;
    }
    const px = x.place(line.x[i]).toFixed(1), py = y.place(line.y[i]).toFixed(1);
    path += open ? (line.step ? `H${px}V${py}` : `L${px} ${py}`) : `M${px} ${py}`;
    open = true;
  }
  return path;
}

function pointSign(line, px, py) {
  const look = {fill: colours().ground, stroke: line.colour, "stroke-width": 1.7};
  return line.points === "diamond" ? s("path", {d: `M${px} ${py - 6}l6 6l-6 6l-6 -6Z`, ...look, fill: line.colour})
                                   : s("circle", {cx: px, cy: py, r: 3, ...look});
}

// Lowest and highest of the lines within a stretch of x.
function extent(lines, domain) {
  let low = Infinity, high = -Infinity;
  for (const line of lines) {
    const first = Math.max(0, atLeast(line.x, domain[0]) - (line.step ? 1 : 0));
    for (let i = first; i < line.x.length && (line.x[i] <= domain[1] || i === first); i++) {
      if (!known(line.y[i])) continue;
      low = Math.min(low, line.y[i]);
      high = Math.max(high, line.y[i]);
    }
  }
  return low <= high ? [low, high] : [0, 1];
}

// options as for makeFigure, and
//   lines(): [{name, colour, dash, x, y, faint, step, points, width, keys}], legend(): [{label, colour, dash,
//   match(line)}], x: {label, format, domain}, y: {label, format, domain, floor, ceiling}, marks(): [{x, label}],
//   levels(): [{y, label}]
function lineChart(options) {
  const visible = (figure) => {
    const off =
      (options.legend ? options.legend() : []).filter((entry) => figure.hidden.has(entry.label) && entry.match);
    return options.lines().filter((line) => !off.some((entry) => entry.match(line)));
  };
  const figure = makeFigure({
    ...options,
    draw: (figure) => drawLines(figure, options, visible(figure)),
    csv: () => {
      const rows = [["series", options.x.label, options.y.label]];
      for (const line of options.lines()) line.x.forEach((x, i) => rows.push([line.name, x, line.y[i]]));
      return rows;
    },
  });
  return figure;
}

function drawLines(figure, options, lines) {
  const c = colours(), legend = options.legend ? options.legend() : [];
  const narrow = figure.width < 520;
  const levels = options.levels ? options.levels() : [], marks = options.marks ? options.marks() : [];
  const right = levels.length && !narrow ? Math.max(...levels.map((l) => measure(l.label, 11.5))) + 16 : 20;
  const top = drawLegend(figure, legend, 4, figure.width - 8);
  const height =
    figure.card.classList.contains("large") ? Math.max(240, innerHeight - 260 - top) : options.height || 280;
  const all = options.x.domain || (() => {
    const xs = lines.filter((line) => line.x.length);
    return xs.length
      ? [Math.min(...xs.map((line) => line.x[0])), Math.max(...xs.map((line) => line.x[line.x.length - 1]))]
      : [0, 1];
  })();
  if (all[1] <= all[0]) all[1] = all[0] + 1;
  const domain = figure.zoom || all;
  let [low, high] = extent(lines, domain);
  for (const level of figure.zoom ? [] : levels) {
    low = Math.min(low, level.y);
    high = Math.max(high, level.y);
  }
  if (options.y.domain && !figure.zoom)
    [low, high] = options.y.domain;
  else {
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    [low, high] = [known(options.y.floor) && !figure.zoom ? options.y.floor : low - room, high + room];
    if (known(options.y.ceiling)) high = Math.min(high, options.y.ceiling);
    if (known(options.y.least)) low = Math.max(low, options.y.least);
  }
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  const places =
    niceTicks(low, high, Math.max(3, height / 56)).map((v) => measure((options.y.format || num)(v), 11.5));
  const left = Math.ceil(Math.max(20, ...places)) + (options.y.label ? 34 : 14);
  const area = {left, top: top + 8, width: figure.width - left - right, height};
  const x = {
    domain,
    label: options.x.label,
    format: options.x.format || ((v) => num(v, 6)),
    place: (v) => area.left + ((v - domain[0]) / (domain[1] - domain[0])) * area.width
  };
  const y = {
    domain: [low, high],
    label: options.y.label,
    format: options.y.format || ((v) => num(v)),
    place: (v) => area.top + (1 - (v - low) / (high - low)) * area.height
  };
  drawAxes(figure, area, x, y);
  const id = `clip${figure.id}`;
  figure.svg.append(s("defs", {},
    s("clipPath", {id},
      s("rect", {x: area.left - 5, y: area.top - 5, width: area.width + 10, height: area.height + 10}))));
  const plot = s("g", {"clip-path": `url(#${id})`});
  figure.svg.append(plot);
  for (const level of levels) {
    plot.append(s("line", {
      x1: area.left,
      x2: area.left + area.width,
      y1: y.place(level.y),
      y2: y.place(level.y),
      stroke: c.soft,
      "stroke-dasharray": "2 4"
    }));
    const at = y.place(level.y);
    if (at < area.top - 2 || at > area.top + area.height + 2) continue;
    figure.svg.append(narrow
        ? s("text", {x: area.left + area.width - 4, y: at - 4, "text-anchor": "end", "font-size": 11, fill: c.soft},
            level.label)
        : s("text", {x: area.left + area.width + 8, y: at + 4, "font-size": 11.5, fill: c.soft}, level.label));
  }
  for (const mark of marks) {
    if (!(mark.x > domain[0] && mark.x < domain[1])) continue;
    const px = x.place(mark.x);
    plot.append(s("line", {
      x1: px,
      x2: px,
      y1: area.top,
      y2: area.top + area.height,
      stroke: mark.colour || c.soft,
      "stroke-dasharray": "5 4",
      "stroke-opacity": 0.8
    }));
    const flip = px > area.left + area.width * 0.7;
    if (mark.label && height > 200)
      plot.append(s("text", {
        x: px + (flip ? -6 : 6),
        y: area.top + area.height - 8,
        "text-anchor": flip ? "end" : "start",
        "font-size": 11.5,
        fill: c.soft,
        stroke: c.ground,
        "stroke-width": 4,
        "paint-order": "stroke"
      },
        mark.label));
  }
  for (const line of lines)
    if (line.faint)
      plot.append(s("path", {
        d: linePath(line.faint, x, y),
        fill: "none",
        stroke: line.colour,
        "stroke-width": 1,
        "stroke-opacity": 0.25
      }));
  for (const line of lines) {
    plot.append(s("path", {
      d: linePath(line, x, y),
      fill: "none",
      stroke: line.colour,
      "stroke-width": line.width || 2,
      "stroke-dasharray": line.dash || null,
      "stroke-linejoin": "round"
    }));
    if (line.points || line.x.length === 1) {
      line.x.forEach(
        (value, i) => known(line.y[i]) && plot.append(pointSign(line, x.place(value), y.place(line.y[i]))));
    }
  }
  hoverLines(figure, area, x, y, all, lines, options);
  return area.top + area.height + 46;
}

function hoverLines(figure, area, x, y, all, lines, options) {
  const c = colours();
  const rule =
    s("line", {class: "live", y1: area.top, y2: area.top + area.height, stroke: c.soft, visibility: "hidden"});
  const dots = s("g", {class: "live"});
  figure.svg.append(rule, dots);
  zoomable(figure, area, x.domain, all, (px, py, value) => {
    dots.replaceChildren();
    rule.setAttribute("visibility", px === null ? "hidden" : "visible");
    if (px === null) return;
    const found = [];
    for (const line of lines) {
      let i = atLeast(line.x, value);
      if (i > 0 && (line.step || i === line.x.length || value - line.x[i - 1] < line.x[i] - value) &&
        !(line.step && line.x[i] === value))
        i--;
      if (!line.x.length || !known(line.y[i])) continue;
      if (!line.step && Math.abs(x.place(line.x[i]) - px) > area.width / 12) continue;
      found.push({line, x: line.x[i], y: line.y[i]});
    }
    if (!found.length) {
      figure.tip.hidden = true;
      return;
    }
    const near = found.reduce((a, b) => (Math.abs(b.x - value) < Math.abs(a.x - value) ? b : a));
    const at = options.y.format || ((v) => num(v, 5));
    rule.setAttribute("x1", px);
    rule.setAttribute("x2", px);
    found.sort((a, b) => b.y - a.y);
    for (const entry of found) {
      const cx = entry.line.step ? px : x.place(entry.x), cy = y.place(entry.y);
      if (cy >= area.top - 4 && cy <= area.top + area.height + 4)
        dots.append(s("circle", {cx, cy, r: 3.6, fill: entry.line.colour, stroke: c.ground, "stroke-width": 1.4}));
    }
    showTip(figure, px, py, [
      h("b", {}, (options.x.tip || ((v) => `${options.x.label} ${num(v, 6)}`))(found[0].line.step ? value : near.x)),
      ...found.slice(0, 14).map((entry) => [h("i", {style: `background:${entry.line.colour}`}),
                                  `${entry.line.name}  `, h("b", {}, (options.y.tip || at)(entry.y))]),
      ...(found.length > 14 ? [`and ${found.length - 14} more`] : [])
    ]);
  });
}
