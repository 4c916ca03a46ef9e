// Puts the page together.

function build() {
  const main = document.getElementById("main"), nav = document.getElementById("nav");
  const groups = [
    [SEVERAL ? "Comparison" : "The run", [overview, losses, fluctuation, loads, gates, time]],
    ["In detail",
      [...(MAX_LAYERS ? [loadDetail, routersDetail, specialDetail, passageDetail, flowDetail, gateDetail] : []), skipDetail]],
    ["About", [settings]],
  ];
  main.append(h("header", {class: "top"}, h("p", {class: "kicker"}, "Routing report"), h("h1", {}, DATA.title),
    h("p", {class: "sub"},
      RUNS.map((run, i) => h("span", {class: "run"}, h("i", {class: "dot", style: `background:${runColour(i)}`}),
                 h("b", {}, run.name),
                 ` ${
                     [run.method, known(run.n_experts) ? count(run.n_experts, "expert") : null,
                       run.n_layers ? count(run.n_layers, "MoE layer") : null, count(run.updates, "update")]
                       .filter(Boolean)
                       .join(" · ")}`)))));
  for (const [title, sections] of groups) {
    const built = sections.map((make) => make()).filter(Boolean);
    if (!built.length) continue;
    if (title === "In detail") {
      main.append(h("div", {class: "group"}, h("h2", {class: "divider"}, title), picker(), built));
    } else
      main.append(...built);
    nav.append(h("p", {}, title),
      ...built.map(
        (part) => h("a", {href: `#${part.id}`}, part.dataset.short || part.querySelector("h2").textContent)));
  }
  follow(nav);
}

// The section in view is marked in the navigation.
function follow(nav) {
  const links = [...nav.querySelectorAll("a")];
  const mark = () => {
    const line = innerHeight * 0.3;
    let here = links[0];
    for (const link of links) {
      const part = document.getElementById(link.getAttribute("href").slice(1));
      if (part && part.getBoundingClientRect().top <= line) here = link;
    }
    if (innerHeight + scrollY >= document.documentElement.scrollHeight - 4) here = links[links.length - 1];
    links.forEach((link) => link.setAttribute("aria-current", link === here));
  };
  onscroll = mark;
  mark();
}

// Colours stand in the figures themselves, so another theme is another page.
function rebuild() {
  for (const id of ["main", "nav"]) document.getElementById(id).replaceChildren();
  figures.length = details.length = 0;
  build();
}

build();
darkMode.addEventListener("change", rebuild);
