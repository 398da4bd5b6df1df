"use strict";
// Only what a pointer adds: values under it, and policies that can be hidden. Everything is drawn already.
document.querySelectorAll("section").forEach((section) => {
  section.querySelectorAll(".legend input").forEach((box) => {
    box.addEventListener("change", () => {
      section.querySelectorAll("[data-policy]").forEach((drawn) => {
        if (drawn.dataset.policy === box.value) drawn.classList.toggle("hidden", !box.checked);
      });
    });
  });
});

function nearest(points, x) {
  let best = points[0];
  for (const point of points) if (Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
  return best;
}

document.querySelectorAll("svg[data-values]").forEach((svg) => {
  const values = JSON.parse(svg.dataset.values);
  const figure = svg.closest("figure");
  const cursor = svg.querySelector(".cursor");
  let tip = null;

  function leave() {
    if (tip) tip.remove();
    tip = null;
    cursor.classList.remove("on");
  }

  function move(event) {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const shown = values.lines.filter((line) => {
      const path = Array.from(svg.querySelectorAll("path")).find((each) => each.dataset.policy === line.name);
      return line.points.length && path && !path.classList.contains("hidden");
    });
    if (!shown.length) return leave();
    const found = shown.map((line) => ({ line, point: nearest(line.points, x) }));
    const at = found.reduce((a, b) => (Math.abs(b.point[0] - x) < Math.abs(a.point[0] - x) ? b : a)).point;
    cursor.classList.add("on");
    cursor.setAttribute("x1", at[0]);
    cursor.setAttribute("x2", at[0]);
    if (!tip) {
      tip = document.createElement("div");
      tip.className = "tip";
      figure.append(tip);
    }
    tip.replaceChildren();
    const head = document.createElement("em");
    head.textContent = `${values.x}: ${at[2]}`;
    tip.append(head);
    found.sort((a, b) => a.point[1] - b.point[1]).forEach(({ line, point }) => {
      const row = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.className = `s${line.colour}`;
      const value = document.createElement("b");
      value.textContent = point[3];
      row.append(swatch, document.createTextNode(line.name), value);
      tip.append(row);
    });
    const frame = figure.getBoundingClientRect();
    const left = event.clientX - frame.left;
    tip.style.top = `${event.clientY - frame.top + 14}px`;
    tip.style.left = `${Math.max(4, left + 16 + tip.offsetWidth > frame.width ? left - tip.offsetWidth - 12 : left + 16)}px`;
  }

  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerleave", leave);
});
