"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  const narrow = innerWidth < 700;

  // "<3", ">=0.5" or "2.4" for numbers: the shown text contains what has no comparison.
  const fits = (wanted, value, row, params) => {
    const found = /^\s*([<>]=?)\s*(-?[\d.]+)\s*$/.exec(wanted);
    if (!found) return String(row.text[params.field]).toLowerCase().includes(wanted.toLowerCase());
    if (typeof value !== "number") return false;
    const limit = Number(found[2]);
    return { "<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit }[found[1]];
  };

  const written = (cell) => {
    const row = cell.getRow().getData(), field = cell.getField();
    const span = document.createElement("span");
    span.textContent = row.text[field];
    span.className = row.mark[field] || "";
    return span;
  };

  const difference = (chosen) => {
    const target = document.getElementById("compare");
    target.replaceChildren();
    if (chosen.length < 2) return;
    const keys = [...new Set(chosen.flatMap((row) => Object.keys(data.own[row.id])))];
    const value = (row, key) => data.own[row.id][key] ?? "-";
    const differing = keys.filter((key) => new Set(chosen.map((row) => value(row, key))).size > 1);
    const head = document.createElement("h3");
    head.textContent = `Configurations of ${chosen.length} runs: ${differing.length} keys differ`;
    const table = document.createElement("table");
    const line = (parent, tag, texts) => {
      const row = parent.appendChild(document.createElement("tr"));
      texts.forEach((text, place) => {
        const cell = row.appendChild(document.createElement(place ? tag : "th"));
        cell.textContent = text;
        if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
      });
    };
    line(table.createTHead(), "th", ["key", ...chosen.map((row) => row.name)]);
    const body = table.createTBody();
    differing.forEach((key) => line(body, "td", [key, ...chosen.map((row) => value(row, key))]));
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.append(table);
    target.append(head, scroll);
  };

  if (data.rows.length) {
    // On a phone the figures come right after the first column.
    const place = (column, at) => (at === 0 ? 0 : column.better ? 1 : 2);
    const order = data.columns.map((column, at) => [place(column, at), at, column]);
    if (narrow) order.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const columns = order.map(([, , column]) => ({
      title: column.title,
      field: column.field,
      formatter: written,
      tooltip: (_, cell) => cell.getRow().getData().text[cell.getField()],
      hozAlign: column.numeric ? "right" : "left",
      headerHozAlign: column.numeric ? "right" : "left",
      sorter: column.numeric ? "number" : "string",
      sorterParams: { alignEmptyValues: "bottom" },
      headerSortStartingDir: column.better === "higher" ? "desc" : "asc",
      headerFilter: "input",
      headerFilterFunc: fits,
      headerFilterFuncParams: { field: column.field },
      headerFilterPlaceholder: column.numeric ? "< > =" : "filter",
    }));
    const table = new Tabulator("#table", {
      data: data.rows,
      columns,
      columnDefaults: { maxInitialWidth: 170 },
      layout: "fitDataFill",
      maxHeight: "70vh",
      selectableRows: true,
      rowHeader: {
        formatter: "rowSelection", titleFormatter: "rowSelection", headerSort: false, width: 40,
        hozAlign: "center", headerHozAlign: "center",
      },
      placeholder: "No run fits the filter.",
    });
    const count = (shown) => {
      document.getElementById("count").textContent = `${shown} of ${data.rows.length} shown`;
    };
    table.on("dataFiltered", (_, rows) => count(rows.length));
    table.on("rowSelectionChanged", difference);
    document.getElementById("search").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      table.setFilter((row) => {
        const all = [row.name, ...Object.values(row.text)].join(" ").toLowerCase();
        return words.every((word) => all.includes(word));
      });
    });
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const draw = () => Object.entries(data.charts).forEach(([id, spec]) =>
    vegaEmbed(`#${id}`, spec, {
      actions: false,
      renderer: "svg",
      theme: dark.matches ? "dark" : undefined,
      config: {
        background: "transparent", legend: { columns: narrow ? 1 : 3 }, axisY: { labelLimit: narrow ? 110 : 280 },
      },
    }));
  dark.addEventListener("change", draw);
  draw();

  document.querySelectorAll("button.copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {  // pages opened from disk may not write to the clipboard
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  }));
})();
