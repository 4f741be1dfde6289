// A line of the last two minutes, newest at the right. Gaps stay gaps.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 36;

export function draw(svg, values) {
  const known = values.filter((value) => value !== null);
  const top = Math.max(1, ...known) * 1.15;
  const left = WIDTH - values.length + 1;
  const runs = [];
  values.forEach((value, n) => {
    if (value === null) {
      runs.push([]);
      return;
    }
    if (runs.length === 0) {
      runs.push([]);
    }
    runs.at(-1).push([left + n, HEIGHT - (value / top) * (HEIGHT - 2) - 1]);
  });
  const lines = runs.filter((run) => run.length > 1);
  const line = lines.map((run) => `M${run.map(([x, y]) => `${x} ${y.toFixed(2)}`).join("L")}`).join("");
  const area = lines
    .map((run) => `M${run[0][0]} ${HEIGHT}L${run.map(([x, y]) => `${x} ${y.toFixed(2)}`).join("L")}L${run.at(-1)[0]} ${HEIGHT}Z`)
    .join("");
  path(svg, "area").setAttribute("d", area);
  path(svg, "line").setAttribute("d", line);
}

function path(svg, name) {
  let found = svg.querySelector(`.${name}`);
  if (found === null) {
    found = document.createElementNS(SVG, "path");
    found.setAttribute("class", name);
    svg.append(found);
  }
  return found;
}
