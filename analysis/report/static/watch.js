// Only in the page of `python3 -m analysis watch`: takes in what the runs have written since.

function watch(live) {
  const status = h("span", {class: "state", role: "status"}, "up to date");
  const hold = button("Pause", "Leave the page as it is", () => {
    live.paused = !live.paused;
    hold.textContent = live.paused ? "Continue" : "Pause";
    if (live.paused) say("paused", "held");
  });
  const bar = h("div", {class: "watch"}, h("i", {class: "pulse", "aria-hidden": "true"}), status, hold);
  document.getElementById("side").append(bar);
  const say = (text, kind) => {
    status.textContent = text;
    bar.dataset.kind = kind;
  };

  // What the reader has made of the figures and tables stays.
  const kept = () => {
    const seen = new Map();
    const places = figures.filter((figure) => figure.card.isConnected).map((figure) => {
      const key = figure.file(), n = seen.get(key) || 0;
      seen.set(key, n + 1);
      return [`${key}#${n}`, figure];
    });
    return new Map(places);
  };
  const rank = (table) => [...document.querySelectorAll("table")].indexOf(table);
  const take = (data) => {
    const before = kept(), top = scrollY;
    const open = [...document.querySelectorAll("details")].map((element) => element.open);
    const sorted = [...document.querySelectorAll("th[aria-sort=ascending], th[aria-sort=descending]")].map(
      (head) => [rank(head.closest("table")), head.textContent, head.getAttribute("aria-sort")]);
    Object.assign(DATA, data);
    RUNS.splice(0, RUNS.length, ...data.runs);
    MAX_LAYERS = Math.max(0, ...RUNS.map((run) => run.n_layers));
    // The place where one reads must not move while the figures are made again.
    const main = document.getElementById("main");
    main.style.minHeight = `${main.offsetHeight}px`;
    rebuild();
    for (const [key, figure] of kept()) {
      const old = before.get(key);
      if (!old) continue;
      figure.zoom = old.zoom;
      old.hidden.forEach((label) => figure.hidden.add(label));
    }
    document.querySelectorAll("details").forEach((element, i) => { element.open = Boolean(open[i]); });
    for (const [table, label, order] of sorted) {
      const heads = document.querySelectorAll("table")[table];
      const head = heads && [...heads.querySelectorAll("th[scope=col]")].find((th) => th.textContent === label);
      for (let i = 0; head && i < 2 && head.getAttribute("aria-sort") !== order; i++) head.querySelector("button").click();
    }
    scrollTo({top, behavior: "instant"});
    // Figures draw themselves in the next frame.
    requestAnimationFrame(() => requestAnimationFrame(() => {
      main.style.minHeight = "";
      scrollTo({top, behavior: "instant"});
    }));
  };

  // A drag, or a figure that covers the page, is not disturbed.
  let pressed = false;
  addEventListener("pointerdown", () => { pressed = true; }, true);
  for (const name of ["pointerup", "pointercancel", "blur"]) addEventListener(name, () => { pressed = false; }, true);
  const busy = () => live.paused || pressed || document.querySelector(".card.large") !== null;

  const ask = async () => {
    if (!busy() && !document.hidden) {
      try {
        const reply = await fetch(`data?after=${live.version}`, {cache: "no-store"});
        if (reply.status === 200) {
          const fresh = await reply.json();
          if (!busy()) {
            live.version = fresh.version;
            take(fresh.data);
            say(`updated ${new Date(fresh.time * 1000).toLocaleTimeString()}`, "fresh");
          }
        } else if (reply.status === 204)
          say(status.textContent.startsWith("updated") ? status.textContent : "up to date", "fresh");
        else
          say(`not answered (${reply.status})`, "lost");
      } catch (error) {
        say("not reachable: has `analysis watch` ended?", "lost");
      }
    }
    setTimeout(ask, 1000 * live.seconds);
  };
  document.addEventListener("visibilitychange", () => document.hidden || (live.paused ? null : say("…", "fresh")));
  setTimeout(ask, 1000 * live.seconds);
}

watch(JSON.parse(document.getElementById("live").textContent));
