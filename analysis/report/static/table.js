// Tables that sort by a click on a heading.

// columns: [{key, label, title, number, show(value, row), best: "low" | "high"}]; rows: [{key: value}].
function makeTable(options) {
  const {columns, rows} = options;
  let by = null, down = false;
  const body = h("tbody", {});
  const bests = {};
  for (const column of columns.filter((k) => k.best && rows.length > 1)) {
    const values = rows.map((row) => row[column.key]).filter(known);
    if (values.length > 1) bests[column.key] = column.best === "low" ? Math.min(...values) : Math.max(...values);
  }
  const shown = (column, row) => (column.show ? column.show(row[column.key], row)
      : column.number                         ? num(row[column.key])
                                              : row[column.key] ?? "–");
  const draw = () => {
    const order = [...rows];
    if (by) {
      order.sort((a, b) => {
        const x = a[by.key], y = b[by.key], none = (v) => v === null || v === undefined || v === "";
        if (none(x) || none(y)) return none(x) - none(y);
        return (typeof x === "number" && typeof y === "number"
                   ? x - y
                   : String(x).localeCompare(String(y), "en", {numeric: true})) *
          (down ? -1 : 1);
      });
    }
    body.replaceChildren(...order.map(
      (row) => h("tr", {class: row.kind || null},
        columns.map((column, i) =>
                      h(i === 0 ? "th" : "td", {
                        scope: i === 0 ? "row" : null,
                        class: [
                          column.number ? "number" : "",
                          bests[column.key] !== undefined && row[column.key] === bests[column.key] ? "best" : ""
                        ].join(" ")
                                 .trim() ||
                          null
                      },
                        shown(column, row))))));
  };
  const heads = columns.map((column) => {
    const head = h("th",
      {scope: "col", class: column.number ? "number" : null, title: column.title, "aria-sort": "none"},
      button(column.label, null, () => {
        down = by === column ? !down : Boolean(column.number && column.best !== "low");
        by = column;
        heads.forEach(
          (other) => other.setAttribute("aria-sort", other === head ? (down ? "descending" : "ascending") : "none"));
        draw();
      }));
    return head;
  });
  draw();
  const name = fileName("stablemoe", options.key);
  const save = button("CSV", "Save the table as CSV", () => saveCSV(name, [
    columns.map((k) => k.label), ...rows.map((row) => columns.map((k) => (k.plain ? k.plain(row) : row[k.key])))
  ]));
  return h("figure", {class: "card table"},
    h("header", {}, h("h3", {}, options.title), h("div", {class: "tools"}, save)),
    h("div", {class: "scroll", tabindex: 0}, h("table", {}, h("thead", {}, h("tr", {}, heads)), body)),
    options.note ? h("figcaption", {}, options.note) : null);
}
