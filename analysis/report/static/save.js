// A figure: a card with a heading, buttons, and a drawing that knows how to draw itself again.

function saveBlob(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = h("a", {href: url, download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const fileName = (...parts) => parts.join("-").toLowerCase().replace(/[^a-z0-9.]+/g, "-").replace(/^-|-$/g, "");

function saveCSV(name, rows) {
  const field = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  const text = rows.map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
  saveBlob(`${name}.csv`, new Blob(["\ufeff", text], {type: "text/csv;charset=utf-8"}));
}

// The drawing with its heading over it, complete in itself.
function standalone(figure) {
  const width = figure.width, height = figure.height, c = colours();
  const drawing = figure.svg.cloneNode(true);
  drawing.querySelectorAll(".live").forEach((element) => element.remove());
  drawing.setAttribute("y", 36);
  for (const name of ["style", "class", "tabindex", "role", "aria-label"]) drawing.removeAttribute(name);
  return s("svg", {
    xmlns: SVG,
    width: width + 24,
    height: height + 48,
    viewBox: `-12 0 ${width + 24} ${height + 48}`,
    "font-family": FONT
  },
    s("rect", {x: -12, width: width + 24, height: height + 48, fill: c.ground}),
    s("text", {x: 0, y: 24, "font-size": 15, "font-weight": 600, fill: c.ink}, figure.heading()), drawing);
}

const svgText = (figure) => new XMLSerializer().serializeToString(standalone(figure));

function saveSVG(figure) { saveBlob(`${figure.file()}.svg`, new Blob([svgText(figure)], {type: "image/svg+xml"})); }

function savePNG(figure) {
  const image = new Image(), scale = 2;
  image.onload = () => {
    const canvas = h("canvas", {width: (figure.width + 24) * scale, height: (figure.height + 48) * scale});
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => saveBlob(`${figure.file()}.png`, blob), "image/png");
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(figure));
}

const button = (text, title, action, more) => h("button", {type: "button", title, onclick: action, ...more}, text);

// A row of choices, one of them taken.
function choices(label, options, value, onchange) {
  const row = h("div", {class: "choices", role: "group", "aria-label": label}, h("span", {class: "label"}, label));
  for (const [key, text] of options) {
    row.append(button(text, null, () => {
      row.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", b.dataset.key === String(key)));
      onchange(key);
    }, {"data-key": key, "aria-pressed": String(key === value)}));
  }
  return row;
}

const figures = [];
let figuresMade = 0;

// options: title (text or function), note (text or element), controls [elements], key (for file names),
//   draw(figure): fills figure.svg for figure.width, returns the height; csv(): rows.
function makeFigure(options) {
  const heading = typeof options.title === "function" ? options.title : () => options.title;
  const svg = s("svg", {class: "drawing", role: "img", tabindex: 0});
  const tip = h("div", {class: "tip", hidden: true});
  const stage = h("div", {class: "stage"}, svg, tip);
  const title = h("h3", {}, heading());
  const figure = {
    svg,
    tip,
    stage,
    heading,
    id: ++figuresMade,
    zoom: null,
    width: 0,
    height: 0,
    hidden: new Set(),
    file: () => fileName("stablemoe", options.key || heading())
  };
  const reset = button("Reset", "Show everything again (double click)", () => {
    figure.zoom = null;
    figure.draw();
  }, {class: "reset", hidden: true});
  const tools = h("div", {class: "tools"}, reset, button("SVG", "Save the figure as SVG", () => saveSVG(figure)),
    button("PNG", "Save the figure as PNG", () => savePNG(figure)),
    button("CSV", "Save the numbers as CSV", () => saveCSV(figure.file(), options.csv())),
    button("⤢", "Large", () => enlarge(card, figure), {"aria-label": "Large"}));
  const card = h("figure", {class: "card"}, h("header", {}, title, tools),
    options.controls && options.controls.length ? h("div", {class: "controls"}, options.controls) : null, stage,
    options.note ? h("figcaption", {}, options.note) : null);
  figure.draw = () => {
    const width = Math.floor(stage.clientWidth);
    if (width < 50) return;
    figure.width = width;
    title.textContent = heading();
    svg.setAttribute("aria-label", heading());
    svg.replaceChildren();
    tip.hidden = true;
    figure.height = Math.round(options.draw(figure));
    fill(svg, {width, height: figure.height, viewBox: `0 0 ${width} ${figure.height}`, "font-family": FONT}, []);
    reset.hidden = !figure.zoom;
  };
  requestAnimationFrame(figure.draw);  // when it has its place in the page
  figure.card = card;
  figures.push(figure);
  return figure;
}

// Figures are as wide as their place; the page's scroll bar is always there, so that only the window changes that.
let resizing = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => {
    for (const figure of figures) {
      if (figure.card.isConnected && figure.stage.clientWidth !== figure.width) figure.draw();
    }
  });
});

function enlarge(card, figure) {
  if (card.classList.toggle("large")) {
    const close = (event) => {
      if (event.key !== "Escape") return;
      card.classList.remove("large");
      removeEventListener("keydown", close);
    };
    addEventListener("keydown", close);
  }
  document.body.classList.toggle("covered", Boolean(document.querySelector(".card.large")));
  figure.draw();
}

// Words beside the pointer. lines: elements or texts.
function showTip(figure, x, y, lines) {
  figure.tip.replaceChildren(...lines.map((line) => h("div", {}, line)));
  figure.tip.hidden = false;
  const width = figure.tip.offsetWidth, room = figure.stage.clientWidth;
  figure.tip.style.left = `${Math.max(0, x + 16 + width > room ? x - 16 - width : x + 16)}px`;
  figure.tip.style.top = `${Math.max(0, y - 12)}px`;
}

// Drag over the plot to look closer; double click, 0 or the button shows everything; + - and arrows by keyboard.
// area: {left, top, width, height}; domain: what is shown now; whole: all there is.
function zoomable(figure, area, domain, all, hover) {
  const {svg} = figure, c = colours();
  const value = (x) => domain[0] + ((x - area.left) / area.width) * (domain[1] - domain[0]);
  const band = s("rect",
    {class: "live", y: area.top, height: area.height, fill: c.accent, "fill-opacity": 0.15, visibility: "hidden"});
  const sheet = s("rect",
    {class: "live sheet", x: area.left, y: area.top, width: area.width, height: area.height, fill: "transparent"});
  let from = null;
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return [Math.max(area.left, Math.min(area.left + area.width, event.clientX - box.left)), event.clientY - box.top];
  };
  const set = (a, b) => {
    const span = Math.max(b - a, (all[1] - all[0]) * 1e-4);
    const low = Math.max(all[0], Math.min(a, all[1] - span)), high = Math.min(all[1], low + span);
    figure.zoom = low <= all[0] && high >= all[1] ? null : [low, high];
    figure.draw();
  };
  sheet.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = place(event)[0];
    sheet.setPointerCapture(event.pointerId);
  });
  sheet.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (from === null) return hover && hover(x, y, value(x));
    fill(band, {x: Math.min(from, x), width: Math.abs(x - from), visibility: "visible"}, []);
  });
  sheet.addEventListener("pointerup", (event) => {
    const x = place(event)[0], start = from;
    from = null;
    band.setAttribute("visibility", "hidden");
    if (start !== null && Math.abs(x - start) > 6) set(value(Math.min(x, start)), value(Math.max(x, start)));
  });
  sheet.addEventListener("pointerleave", () => {
    if (from === null) {
      figure.tip.hidden = true;
      hover && hover(null);
    }
  });
  sheet.addEventListener("dblclick", () => {
    figure.zoom = null;
    figure.draw();
  });
  svg.onkeydown = (event) => {
    const middle = (domain[0] + domain[1]) / 2, half = (domain[1] - domain[0]) / 2;
    const act = {
      "+": [middle - half / 2, middle + half / 2],
      "-": [middle - half * 2, middle + half * 2],
      0: all,
      ArrowLeft: [domain[0] - half / 2, domain[1] - half / 2],
      ArrowRight: [domain[0] + half / 2, domain[1] + half / 2]
    };
    if (!act[event.key]) return;
    event.preventDefault();
    set(...act[event.key]);
  };
  svg.append(band, sheet);
}
