"use strict";
(() => {
  const { config, charts } = JSON.parse(document.getElementById("data").textContent);

  // `ast`: expressions are interpreted, so that the page needs no right to make code of text.
  const options = { config, actions: false, renderer: "svg", ast: true, defaultStyle: false };

  async function draw(place) {
    try {
      await vegaEmbed(place, charts[place.dataset.chart], options);
      place.dataset.drawn = "yes";
    } catch (error) {
      place.classList.add("failed");
      place.textContent = "This chart could not be drawn; its figures are in the tables.";
      console.error(error);
    }
  }

  function keyOf(row, column) {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  }

  function compare(a, b) {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
    return typeof a === "number" ? -1 : 1;
  }

  function sort(table, column, header) {
    const up = header.getAttribute("aria-sort") !== "ascending";
    const body = table.tBodies[0];
    const rows = [...body.rows].sort(
      (one, other) => (up ? 1 : -1) * compare(keyOf(one, column), keyOf(other, column)));
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }

  function makeSortable(table) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, column, header));
      header.append(button);
    });
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  Promise.all([...document.querySelectorAll("[data-chart]")].map(draw)).then(() => {
    document.documentElement.dataset.ready = "yes";
  });
})();
