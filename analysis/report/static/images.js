// Of models of images: the places of an image that experts take, and pictures with their patches.

function placesDetail() {
  return section("experts", ["Where experts look", "Places"],
    "Each expert with the grid of an image's patches: the deeper the colour, the larger the share of the assignments at that place that are its own.",
    detail((run, layer) => (layer && layer.places ? placesParts(run, layer)
                                                  : nothing(lacking(run, "no records of patches (log.tokens_every)")))));
}

// Columns of the grid of patches: as the pictures have it, else a square.
function gridColumns(run, n) {
  const p = run.pictures;
  if (p) return Math.round(p.width / p.patch_width);
  return Number.isInteger(Math.sqrt(n)) ? Math.sqrt(n) : n;
}

function placesParts(run, layer) {
  const end = layer.information_end, n = layer.places.length, columns = gridColumns(run, layer.places[0].length);
  const most = Math.max(...layer.places.flat(), 1e-9);
  const side = Math.max(6, Math.min(26, 150 / columns));
  const card = (shares, e) => h("div", {class: "expert", style: `--expert:${expertColour(e, n)}`},
    h("header", {}, h("b", {}, `Expert ${e}`),
      h("span", {}, `${percent(100 * layer.special[e].share)} of all assignments`)),
    s("svg", {
      width: columns * side, height: Math.ceil(shares.length / columns) * side, role: "img",
      "aria-label": `Places of expert ${e}`
    },
      shares.map((share, i) => s("rect", {
        x: (i % columns) * side, y: Math.floor(i / columns) * side, width: side - 1, height: side - 1,
        fill: css(along(colours().ramp, share / most))
      },
        s("title", {}, `place ${i}: ${percent(100 * share)} of its assignments`)))));
  return [
    h("div", {class: "experts"}, layer.places.slice(0, 64).map(card)),
    h("p", {class: "small"}, counted(run),
      end && known(end.share)
        ? ` A patch's place in its image tells ${num(end.mutual, 3)} of the ${num(end.expert, 3)} bits of its expert (${
            percent(end.share)}).`
        : "")
  ];
}

function picturesDetail() {
  return section("passage", ["Images and the patches of each expert", "Images"], null,
    detail((run) => (run.pictures && run.pictures.items.length
                         ? makePictures(run)
                         : nothing(lacking(run, "no records of patches (log.tokens_every), or its corpus was not found")))));
}

function makePictures(run) {
  const p = run.pictures, m = shownLayer(run), n = run.n_experts;
  const hidden = new Set(), space = h("div", {class: "pictures"});
  const draw = () => space.replaceChildren(...p.items.map((item) => picture(p, item, m, n, hidden)));
  const legend = h("div", {class: "bar"}, Array.from({length: n}, (_, e) => {
    const chip = button(`Expert ${e}`, null, () => {
      if (!hidden.delete(e)) hidden.add(e);
      chip.setAttribute("aria-pressed", String(!hidden.has(e)));
      draw();
    }, {class: "chip", "aria-pressed": "true", style: `--expert:${expertColour(e, n)}`});
    return chip;
  }));
  draw();
  return [
    legend, space,
    h("p", {class: "small"}, `Training images of update ${
      whole.format(p.update)}, with the experts that take each patch: framed by up to three that are shown, marked by more; a dot marks the patch that decides the class, where the corpus knows it.`)
  ];
}

// One image with the patches that experts take: frames inside each other of up to three, marks of more.
function picture(p, item, m, n, hidden) {
  const scale = 150 / Math.max(p.width, p.height), columns = Math.round(p.width / p.patch_width);
  const width = p.patch_width * scale, height = p.patch_height * scale;
  const left = (i) => (i % columns) * width, top = (i) => Math.floor(i / columns) * height;
  const frame = (e, k, i) => {
    const inset = 1 + 2 * k;
    return {
      x: left(i) + inset, y: top(i) + inset, width: Math.max(1, width - 2 * inset),
      height: Math.max(1, height - 2 * inset), fill: "none", stroke: expertColour(e, n), "stroke-width": 1.6
    };
  };
  // Of many experts each has a small mark at a place of its own, so that the image can be seen.
  const size = Math.min(6, (width - 4) / 4), across = Math.max(1, Math.floor((width - 4) / (size + 1)));
  const mark = (e, k, i) => ({
    x: left(i) + 2 + (e % across) * (size + 1),
    y: top(i) + height - 2 - (Math.ceil(n / across) - Math.floor(e / across)) * (size + 1), width: size, height: size,
    fill: expertColour(e, n), stroke: "#000", "stroke-width": 0.6
  });
  const shape = n - hidden.size <= 3 ? frame : mark;
  const frames = item.experts[m].flatMap((experts, i) => experts.filter((e) => !hidden.has(e)).map(
    (e, k) => s("rect", shape(e, k, i), s("title", {}, `expert ${e}, patch ${i}`))));
  return h("figure", {},
    s("svg", {
      width: p.width * scale, height: p.height * scale, role: "img",
      "aria-label": `Image ${item.image} of class ${item.label}`
    },
      s("image", {
        href: item.src, width: p.width * scale, height: p.height * scale, preserveAspectRatio: "none",
        style: "image-rendering:pixelated"
      }),
      frames,
      item.place >= 0
        ? s("circle", {
            cx: left(item.place) + width - 5, cy: top(item.place) + 5, r: 3, fill: "#fff", stroke: "#000"
          })
        : null),
    h("figcaption", {class: "small"}, `image ${item.image}: class ${item.label}`));
}
